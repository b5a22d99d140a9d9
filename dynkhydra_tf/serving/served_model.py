"""What every export format converts: a trained model and how it is to be served. M: number of classes."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Union

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving.drift import Histograms
from dynkhydra_tf.serving.server_files import check_name

if TYPE_CHECKING:
    import numpy as np

    from dynkhydra_tf.hydra import Hydra
    from dynkhydra_tf.plain import Plain
    from dynkhydra_tf.serving.samples import Samples

QUANTIZATIONS = {"litert": ("float16", "dynamic"), "onnx": ("int8",)}  # of each format
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
# Of a request by default: more images are no faster than as many in two requests, and no request takes long.
MOST_IMAGES, MOST_FLOPS = 128, 12e9  # an eighth of a second of one core with AVX-512


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """A trained model and how it is to be served.

    The fields from top_classes on are for some formats only, see `formats`.

    Attributes:
        name: its name on a server.
        model: `Hydra` or `Plain`; exporting leaves it as it is. Its own exit confidence is served.
        class_names: M str, in the order of the labels.
        fit: how a picture becomes square, see `preprocess`.
        tau: the threshold to serve with, in [0, 1); None for a plain network.
        card: the text of model_card.md.
        top_classes: int in 0..M, k of the top-k outputs; 0 for none.
        input_dtype: "uint8" or "float32", of the input `images`.
        batch_sizes: rising ints, the batch sizes to warm up and those that a server may batch requests to;
            None: those of `BATCH_SIZES` that max_batch allows, see `sizes`.
        quantize: one of the format's `QUANTIZATIONS`, see `litert` and `onnx_int8`; None for float32.
        max_batch: the most images of a request; None: by what an image costs, see `largest_batch`.
        max_pixels: of the largest picture that a request may hold; None: 16 megapixels, or 256 times an
            image's, whichever is more.
        tau_rows: rows of `Evaluation.tau_table`; images: (n, S, S, 3) uint8, some of those that they were
            measured on, to be timed; validation: what the model did on all of them, see `drift`. For a
            SavedModel of a Hydra, where the data are there.
        samples: images to quantise and to check with, which int8 needs.
        costs: `hydra_costs` or `plain_costs` of the model; None: counted where they are needed.

    Raises:
        UserError: a name, a number of top classes or of images that cannot be served.
        ValueError: names that are not M, or a tau out of range.
    """

    name: str
    model: Union["Hydra", "Plain"]
    class_names: Sequence[str]
    fit: str
    tau: float | None
    card: str = ""
    top_classes: int = 0
    input_dtype: str = "uint8"
    batch_sizes: Sequence[int] | None = None
    quantize: str | None = None
    max_batch: int | None = None
    max_pixels: int | None = None
    tau_rows: Sequence[Mapping] = ()
    images: Union["np.ndarray", None] = None
    validation: Histograms | None = None
    samples: Union["Samples", None] = None
    costs: Mapping | None = None

    def __post_init__(self) -> None:
        """Checks the fields."""
        from dynkhydra_tf.hydra import Hydra

        check_name(self.name)
        classes = self.model.num_classes
        if len(self.class_names) != classes:
            raise ValueError(f"There must be {classes} class names. Received: {len(self.class_names)}")
        if not 0 <= self.top_classes <= classes:
            raise UserError(
                f"top_classes must be in 0..{classes}, the number of classes. "
                f"Received: top_classes={self.top_classes}"
            )
        if self.max_batch is not None and self.batch_sizes and self.max_batch < max(self.batch_sizes):
            raise UserError(
                f"max_batch must be at least {max(self.batch_sizes)}, the largest of batch_sizes. "
                f"Received: max_batch={self.max_batch}"
            )
        gated = isinstance(self.model, Hydra)
        if gated != (self.tau is not None) or (gated and not 0 <= self.tau < 1):
            raise ValueError(
                f"tau must be in [0, 1) for a Hydra, None for a plain network. Received: tau={self.tau}"
            )

    def check_options(self, format: str, taken: Sequence[str]) -> None:
        """Checks that a format takes what is asked for.

        Args:
            format: its name.
            taken: what it takes of the fields from top_classes on.

        Raises:
            UserError: it does not.
        """
        for option in ("top_classes", "input_dtype", "batch_sizes", "quantize", "max_batch", "max_pixels"):
            value = getattr(self, option)
            if value != getattr(type(self), option) and option not in taken:
                raise UserError(
                    f"{format} does not take {option}, but {', '.join(taken) or 'no such option'}. "
                    f"Received: {option}={value!r}"
                )
        if self.quantize not in (None, *(allowed := QUANTIZATIONS.get(format, ()))):
            raise UserError(
                f"quantize of {format} must be one of {', '.join(allowed)}. "
                f"Received: quantize={self.quantize!r}"
            )

    @property
    def image_size(self) -> int:
        """S, height and width of an image in pixels."""
        return self.model.backbone.input_shape[0]

    @functools.cached_property
    def largest_batch(self) -> int:
        """max_batch; where none is given, the largest power of two, at most `MOST_IMAGES`, of `MOST_FLOPS`.

        Each image counts with K branches, as at tau 0. It is no fewer than the largest of batch_sizes, where
        those are given.
        """
        if self.max_batch:
            return self.max_batch
        affordable = max(1, min(MOST_IMAGES, int(MOST_FLOPS // max(1, self._flops()))))
        return max(2 ** (affordable.bit_length() - 1), *(self.batch_sizes or (1,)))

    def _flops(self):
        """The FLOPs of the dearest image."""
        from dynkhydra_tf.costs import hydra_costs, inference_flops, plain_costs

        if self.tau is None:
            model = self.model
            return (self.costs or plain_costs(model.backbone, model.num_classes, model.network))["flops"]
        return inference_flops((self.costs or hydra_costs(self.model))["flops"], self.model.top_k)

    @property
    def sizes(self) -> Sequence[int]:
        """batch_sizes, or what they are where none are given."""
        return self.batch_sizes or [size for size in BATCH_SIZES if size <= self.largest_batch]

    @property
    def most_pixels(self) -> int:
        """max_pixels, or what it is where none is given."""
        return self.max_pixels or max(
            16 * 1024**2, 256 * self.image_size**2
        )  # a phone takes photos of 12 million
