"""The machine that something was measured on: a time without it says little."""

import os
import platform


def describe_machine() -> dict[str, str | int]:
    """Returns "processor", its name, and "cores", how many it has."""
    return {"processor": _processor(), "cores": os.cpu_count()}


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
