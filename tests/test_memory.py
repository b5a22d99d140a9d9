"""Memory that is freed stays with the process."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
import tensorflow as tf
from dynkhydra_tf.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        np.ones(2**20)  # 8 MiB: 2048 pages, or 4 where the system gives large ones
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if {keep}:
    keep_freed_memory()
number = tf.TensorSpec((), tf.int32)
list(tf.data.Dataset.from_generator(lambda: iter([1]), output_signature=number))
faults()
print("faults", faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc")
@pytest.mark.parametrize("keep", [True, False])
def test_a_dataset_from_a_generator_costs_no_page_faults(keep):
    done = subprocess.run([sys.executable, "-c", SCRIPT.format(keep=keep)], capture_output=True, text=True)
    faults = int(done.stdout.split()[-1])
    assert faults < 20 if keep else faults >= 60  # without it this file has no purpose any more
