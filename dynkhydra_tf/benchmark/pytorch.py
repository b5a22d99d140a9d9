"""Networks in PyTorch as its users would write them, for `runner.py` to time; it needs torch and NumPy alone.

A file is the pickle of what `subjects.export_pytorch` writes: the normalisation and, of each part, its layers
as tuples: ("conv", kernel, bias, strides, relu), ("block", convolutions, strides), ("pool",), ("dense",
kernel, bias). Kernels are as Keras has them, (h, w, in, out), but turned by 180 degrees, and images as well:
TensorFlow's "same" padding, which with stride 2 begins behind the first pixel, is then PyTorch's.

A Hydra runs all its branches on the whole batch and masks: what one writes where nothing skips. Maps are
channels last, the layout in which oneDNN is fastest, and the traced network is frozen. B is the batch axis.
"""

import pickle
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Conv(nn.Module):
    """A convolution with its bias, and perhaps a ReLU."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray, strides: int, relu: bool) -> None:
        super().__init__()
        height, width, channels, filters = kernel.shape
        self.conv = nn.Conv2d(channels, filters, (height, width), strides, (height // 2, width // 2))
        self.conv.weight.data = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        self.conv.bias.data = torch.from_numpy(bias)
        self.relu = relu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, H, W) to (B, filters, H/strides, W/strides)."""
        x = self.conv(x)
        return functional.relu_(x) if self.relu else x


class Block(nn.Module):
    """Convolutions and a shortcut without parameters, see `backbones.resnet.BasicBlock`."""

    def __init__(self, convolutions: list[tuple], strides: int) -> None:
        super().__init__()
        self.convolutions, self.strides = sequence(convolutions), strides

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, H, W) to (B, filters, H/strides, W/strides)."""
        y = self.convolutions(x)
        if self.strides > 1:
            x = x[:, :, self.strides - 1 :: self.strides, self.strides - 1 :: self.strides]  # turned images
        missing = y.shape[1] - x.shape[1]
        if missing:
            x = functional.pad(x, (0, 0, 0, 0, 0, missing))
        return functional.relu_(y + x)


class Pool(nn.Module):
    """The mean over the pixels."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, H, W) to (B, C)."""
        return x.mean((2, 3))


class Dense(nn.Module):
    """A dense layer."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray) -> None:
        super().__init__()
        self.linear = nn.Linear(*kernel.shape)
        self.linear.weight.data = torch.from_numpy(np.ascontiguousarray(kernel.T))
        self.linear.bias.data = torch.from_numpy(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (B, C) to (B, outputs)."""
        return self.linear(x)


LAYERS = {"conv": Conv, "block": Block, "pool": Pool, "dense": Dense}


def sequence(layers: list[tuple]) -> nn.Sequential:
    """Returns the layers that tuples describe, one after the other."""
    return nn.Sequential(*(LAYERS[kind](*arguments) for kind, *arguments in layers))


class Network(nn.Module):
    """From images (B, S, S, 3) uint8 to probabilities (B, M): a plain network, or a Hydra and a mask."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.from_numpy(content["scale"]).reshape(-1, 1, 1))
        self.register_buffer("offset", torch.from_numpy(content["offset"]).reshape(-1, 1, 1))
        self.parts = nn.ModuleDict({name: sequence(layers) for name, layers in content["parts"].items()})
        self.branches = nn.ModuleList([sequence(layers) for layers in content["branches"]])
        self.top_k, self.tau, self.combine = (content.get(name) for name in ("top_k", "tau", "combine"))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Answers a batch."""
        x = torch.flip(images.permute(0, 3, 1, 2), (2, 3)).float()
        x = (x * self.scale + self.offset).contiguous(memory_format=torch.channels_last)
        if not self.branches:
            return torch.softmax(self.parts["network"](x), 1)
        features = self.parts["stem"](x)
        gate = torch.softmax(self.parts["gater"](features), 1)
        best, chosen = torch.topk(gate, self.top_k)
        kept = best >= self.tau
        kept[:, 0] = True
        weights = torch.zeros_like(gate).scatter(1, chosen, torch.where(kept, best, 0.0))
        weights = (weights > 0).float() if self.combine == "sum" else weights / weights.sum(1, keepdim=True)
        maps = [branch(features) * weights[:, i, None, None, None] for i, branch in enumerate(self.branches)]
        return torch.softmax(self.parts["combiner"](sum(maps)), 1)


class TorchModel:
    """A file of `subjects.export_pytorch`, with what `runner.py` uses of `native.SavedModel`."""

    def __init__(self, path: str, threads: int) -> None:
        torch.set_num_threads(threads)
        with open(path, "rb") as file:
            content = pickle.load(file)
        network = Network(content).eval().to(memory_format=torch.channels_last)
        with torch.inference_mode():
            images = torch.zeros(2, *content["image_shape"], dtype=torch.uint8)
            self.network = torch.jit.freeze(torch.jit.trace(network, images))

    def run(self, inputs: dict, signature: str) -> dict:
        """Returns the outputs for a batch."""
        with torch.inference_mode():
            return {"probabilities": self.network(torch.from_numpy(inputs["images"])).numpy()}

    def request(self, inputs: dict, signature: str) -> "TorchRequest":
        """Returns a request to be run again and again."""
        return TorchRequest(self.network, torch.from_numpy(inputs["images"]))

    def close(self) -> None:
        """Lets go of it."""
        del self.network


class TorchRequest:
    """A batch for a `TorchModel`."""

    def __init__(self, network: Any, images: torch.Tensor) -> None:
        self.network, self.images = network, images

    def run(self) -> None:
        """Answers it."""
        with torch.inference_mode():
            self.network(self.images)

    def __exit__(self, *error: object) -> None:
        """Nothing to release."""
