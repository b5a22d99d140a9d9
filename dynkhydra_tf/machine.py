"""The machine that something was measured on: a time without it says little."""

import os
import platform
from typing import Any


def describe_machine() -> dict[str, Any]:
    """Returns "processor", its name, "cores", how many it has, and "accelerators": the `gpus`, if any."""
    accelerators = gpus()
    named = {"accelerators": accelerators} if accelerators else {}
    return {"processor": _processor(), "cores": os.cpu_count(), **named}


def gpus() -> list[str]:
    """Returns the names of the GPUs that TensorFlow sees, such as "NVIDIA H200"."""
    import tensorflow as tf

    details_of = tf.config.experimental.get_device_details
    devices = tf.config.list_physical_devices("GPU")
    return [details_of(device).get("device_name", device.name) for device in devices]


def part_dtype(mixed_precision: bool | str) -> str:
    """Returns the Keras dtype policy of a network's convolutions that a run's setting stands for."""
    mixed = computes_in_bfloat16() if mixed_precision == "auto" else mixed_precision
    return "mixed_bfloat16" if mixed else "float32"


def computes_in_bfloat16() -> bool:
    """Whether the processor has instructions for products in bfloat16; False where it does not tell."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set((_told("flags") or _told("Features")).split()))


def _processor() -> str:
    return _told("model name") or platform.processor() or platform.machine()


def _told(name: str) -> str:
    """What the kernel says of the first core under this name; "" where it says nothing."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.partition("\t")[0] == name)
    except (OSError, StopIteration):
        return ""
