"""The runs of a GPU, its side: the loop over the steps of a parcel, by JAX; the commands are in lower.py."""

import argparse
import gzip
import json
import pathlib
import re
import time

import jax
import numpy as np
from jax._src.interpreters import mlir
from jax._src.lib import _jax, xla_client
from jaxlib.mlir import ir

jax.config.update("jax_enable_x64", True)  # the step counts in int64


class Step:
    """A training step, compiled for the first device, and the state that it moves."""

    def __init__(self, parcel, seed=0):
        about = json.loads((parcel / "about.json").read_text())
        self.names, self.takes, self.gives = about["names"], about["takes"], about["gives"]
        device = jax.devices()[0]
        with gzip.open(parcel / "step.hlo.gz") as file, mlir.make_ir_context():
            text = str(ir.Module.parse(_jax.mlir.hlo_to_stablehlo(file.read())))
        # Copies say nothing, and the GPU's client does not know them.
        text = re.sub(r"mhlo\.copy (%\S+) : (tensor<[^>]*>)", r"stablehlo.reshape \1 : (\2) -> \2", text)
        devices = xla_client.DeviceList((device,))
        self.run = device.client.compile_and_load(text.encode(), devices).execute_sharded
        arrays, draw = np.load(parcel / "state.npz"), np.random.default_rng(seed + 1000)
        state = [arrays[f"arr_{number}"] for number in range(len(self.names))]
        if seed:  # the entries of a drawn tensor are independent: another order of them is another draw
            drawn = [array.ndim > 1 and array.std() > 0 for array in state]
            pairs = zip(state, drawn, strict=True)
            state = [draw.permutation(a.ravel()).reshape(a.shape) if of else a for a, of in pairs]
        self.state = [jax.device_put(array) for array in state]

    def __call__(self, number, images, labels):
        """Does one step on images (B, S, S, 3) uint8 and labels (B,) int32; the number seeds augmentation."""
        given = [jax.device_put(value) for value in (number, images, labels)]
        results = self.run([*given, *(self.state[place] for place in self.takes)])
        results = results.disassemble_into_single_device_arrays()
        for output, place in self.gives:
            self.state[place] = results[output][0]

    def value(self, name):
        """Returns a part of the state, a numpy array."""
        return np.asarray(self.state[self.names.index(name)])

    def take(self, name):
        """Returns a part of the state and puts zeros in its place."""
        value = self.value(name)
        self.state[self.names.index(name)] = jax.device_put(np.zeros_like(value))
        return value


def train(parcel, result, seed):
    """Trains as `about.json` says; writes RESULT.npz, the state, and RESULT.json, the log."""
    about, data = json.loads((parcel / "about.json").read_text()), np.load(parcel / "images.npz")
    count, steps = about["batch_size"], about["steps"]
    images, labels = (jax.device_put(data[name]) for name in ("images", "labels"))

    @jax.jit
    def batch(images, labels, order, number):
        chosen = jax.lax.dynamic_slice_in_dim(order, number % steps * count, count)
        return number + 1, images[chosen], labels[chosen]

    step, draw, log = Step(parcel, seed), np.random.default_rng(seed), []
    number, start = jax.device_put(np.int64(0)), time.monotonic()
    for epoch in range(about["epochs"]):
        order, begun = jax.device_put(draw.permutation(len(labels))[: steps * count]), time.monotonic()
        for _ in range(steps):
            number, *chosen = batch(images, labels, order, number)
            step(number + seed * 1_000_000_007, *chosen)
        log.append({name: step.take(name).tolist() for name in about["sums"]})
        log[-1]["seconds"] = time.monotonic() - begun
        print(f"epoch {epoch + 1}: {log[-1]['seconds']:.2f} s", flush=True)
    np.savez(result.with_suffix(".npz"), **{name: step.value(name) for name in step.names})
    told = {"epochs": log, "device": jax.devices()[0].device_kind, "seconds": time.monotonic() - start}
    result.with_suffix(".json").write_text(json.dumps(told))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parcel", type=pathlib.Path)
    parser.add_argument("result", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    train(given.parcel, given.result, given.seed)
