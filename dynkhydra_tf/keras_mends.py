"""What Keras does slowly for want of a word, mended when it is imported."""

import contextlib
import functools

from dynkhydra_tf.import_hooks import after_import


def mend_keras() -> None:
    """Mends Keras, now or when it is imported."""
    after_import("keras", _mend)


def _mend() -> None:
    """Saving and loading ask which attributes of a layer are no state; Keras 3 keeps what it finds under one
    name, looks for it under another, and so makes a new layer for each layer: half the time of a loading.
    """
    with contextlib.suppress(ImportError, AttributeError):  # another version has it elsewhere, or not
        from keras.src.saving import saving_lib

        found = saving_lib.get_attr_skipset
        if not hasattr(found, "cache_info"):
            saving_lib.get_attr_skipset = functools.cache(found)
