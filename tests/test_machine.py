import io

import pytest
import tensorflow as tf

from dynkhydra_tf import machine
from dynkhydra_tf.benchmark import environment


@pytest.mark.parametrize(
    ("told", "dtype"),
    [
        ("model name\t: Some\nflags\t\t: fpu avx2 avx512_bf16\n", "mixed_bfloat16"),
        ("model name\t: Some\nflags\t\t: fpu amx_bf16\n", "mixed_bfloat16"),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", "mixed_bfloat16"),
        ("model name\t: Some\nflags\t\t: fpu avx2 avx512f\n", "float32"),
        ("", "float32"),
    ],
)
def test_bfloat16_where_the_processor_computes_in_it(monkeypatch, told, dtype):
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO(told))
    assert machine.part_dtype("auto") == dtype
    if "model name" in told:
        assert machine.describe_machine()["processor"] == "Some"
    assert (machine.part_dtype(True), machine.part_dtype(False)) == ("mixed_bfloat16", "float32")


def test_a_machine_is_told_with_its_accelerators(monkeypatch):
    assert "accelerators" not in machine.describe_machine()
    details = {"/physical_device:GPU:0": {"device_name": "NVIDIA H200"}, "/physical_device:GPU:1": {}}
    devices = [tf.config.PhysicalDevice(name, "GPU") for name in details]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: devices if kind == "GPU" else [])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details[device.name])
    assert machine.describe_machine()["accelerators"] == ["NVIDIA H200", "/physical_device:GPU:1"]
    assert environment.describe("default")["accelerators"] == "NVIDIA H200, /physical_device:GPU:1"
