"""What a process does with memory that it has freed."""

import ctypes
import functools
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
KEPT, LARGEST = 2**30, 2**25  # bytes: the most that stays unused, the largest piece of it that glibc allows


@functools.cache
def keep_freed_memory() -> None:
    """Lets a process keep the memory that it has freed, to use it again.

    TensorFlow's first dataset from a generator, which the iterators of tf.distribute are, tells malloc to
    give it back at once: what each step frees then comes again as some thousand page faults in the next one.
    Does nothing where malloc is not glibc's.
    """
    malloc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(malloc, "mallopt"):
        return
    import tensorflow as tf

    number = tf.TensorSpec((), tf.int32)
    list(tf.data.Dataset.from_generator(lambda: iter([0]), output_signature=number))  # it tells it only once
    malloc.mallopt(M_TRIM_THRESHOLD, KEPT)
    malloc.mallopt(M_MMAP_THRESHOLD, LARGEST)
