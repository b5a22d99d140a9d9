"""What Hydra and the plain network share as Keras models: training by named losses, metrics, saving.

Axis letters: B batch, H W an image's height and width, M classes.
"""

import abc
import functools
import inspect
import itertools
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import keras
import tensorflow as tf

from dynkhydra_tf import distribution, losses
from dynkhydra_tf.answers import Answer
from dynkhydra_tf.averaging import build_optimizer, update_averages
from dynkhydra_tf.backbones.base import Backbone
from dynkhydra_tf.classification import classify_photos
from dynkhydra_tf.data.preprocessing import FITS
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.losses import Loss, Sums, Targets
from dynkhydra_tf.model_parts import check_settings, make_normalizer
from dynkhydra_tf.reports import Report
from dynkhydra_tf.targets import check_shape, in_one_line, require, unpack


class ImageClassifier(keras.Model, abc.ABC):
    """A network on a backbone, from images (B, H, W, 3) in 0..255 to logits (B, M), trained with `fit`.

    A subclass makes its parts, then calls `finish`, and says what a pass over a batch is. Its constructor's
    arguments are fixed once it is built: they are constants of the traced steps.

    `fit` takes images with labels (B,), or with a dict of targets: "labels", perhaps "sample_weight", and
    what the losses need besides. `sample_weight` and `class_weight` weight every loss as Keras does: the sum
    of the weighted losses over the number of images. Of the metrics only `weighted_metrics` are weighted.

    Args:
        loss_settings: of `losses.with_settings`, for the losses in `LOSSES`.
        class_names: M str in the order of the labels, and picture_fit: how a picture becomes square, see
            `preprocess`: what `classify` needs, and the .keras file keeps. None where they are not known.
        The other arguments are as of the subclass.
    """

    supports_jit = False  # see `compile`
    LOSSES: ClassVar[Mapping[str, Loss]]

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        part_dtype: str,
        loss_settings: Mapping[str, Any],
        name: str,
        class_names: Sequence[str] | None = None,
        picture_fit: str | None = None,
    ) -> None:
        super().__init__(name=name, dtype="float32")
        check_settings(mean, std, part_dtype)
        self.backbone = backbone
        self.num_classes = num_classes
        self.class_names, self.picture_fit = _checked_photos(class_names, num_classes, picture_fit)
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.part_dtype = part_dtype
        self.loss_terms = types.MappingProxyType(losses.with_settings(self.LOSSES, loss_settings))
        self.normalize = make_normalizer(backbone, self.mean, self.std)

    def finish(self, group_sizes: Mapping[str, int], numbers: Mapping[str, str | None]) -> None:
        """Ends a subclass's constructor: the model is ready to call, to train, to save and to count.

        Args:
            group_sizes, numbers: see `Report`.
        """
        self._report = Report(self.loss_terms, group_sizes, numbers)
        self.built = True

    def __setattr__(self, name: str, value: object) -> None:
        """Sets an attribute, but for those that are fixed.

        Raises:
            AttributeError: a setting of a model that is built.
        """
        if getattr(self, "built", False) and name in self._fixed():
            raise AttributeError(
                f"{name} is fixed when the model is made: make another one, {type(self).__name__}."
                f"from_config({{**model.get_config(), ...}}), and give it this one's weights. "
                f"Received: {name}={value!r}"
            )
        super().__setattr__(name, value)

    @classmethod
    def _fixed(cls) -> set[str]:
        settings = inspect.signature(cls.__init__).parameters.keys() - {
            "self",
            "name",
            "tau",
            "exit_confidence",
        }
        return settings | {"num_classes", "num_branches", "loss_terms"}

    # === The pass over a batch ===

    @abc.abstractmethod
    def run(self, images: tf.Tensor, targets: Targets, training: bool) -> tuple[Any, Targets]:
        """Returns the pass over a batch, and the targets with what this model adds to them; see `Loss`."""

    @abc.abstractmethod
    def numbers(self, forward: Any, targets: Targets) -> dict[str, tf.Tensor]:
        """Returns what is reported besides the losses: (B,) values by name."""

    def __call__(self, images: tf.Tensor, *args: object, **kwargs: object) -> dict[str, tf.Tensor]:
        """As Keras's; looks at the images first, for Keras adds ten lines to an error from within `call`."""
        images = check_shape(images, self.backbone.input_shape, "images")
        return super().__call__(images, *args, **kwargs)

    def normalized(self, images: tf.Tensor) -> tf.Tensor:
        """Returns images (B, H, W, 3), 0..255, of any number type, as the first convolution takes them.

        Raises:
            ValueError: images of another shape.
        """
        return self.normalize(check_shape(images, self.backbone.input_shape, "images"))

    def losses_of(
        self, images: tf.Tensor, targets: Targets, training: bool
    ) -> tuple[dict[str, Sums], Any, Targets]:
        """Returns the `Sums` of each loss over a batch, the pass, and all targets.

        Args:
            images: (B, H, W, 3), or maps, see `frozen_part`. targets: as of `targets.unpack`.
            training: bool, whether batch normalisation takes the statistics of the batch and moves its own.
        """
        forward, targets = self.run(images, targets, training)
        return losses.sums(self.loss_terms, forward, targets), forward, targets

    # === The frozen part: methods, for Keras saves what is in properties ===

    @abc.abstractmethod
    def first_parts(self) -> tuple[keras.Layer, ...]:
        """The layers that a normalised image goes through one after the other, before the way forks."""

    def frozen_part(self) -> tuple[keras.Layer, ...]:
        """Those of the first parts that come before any that is trained; () where they have no weights.

        What they give for an image stays the same while the model is trained. `fit` and `evaluate` take these
        maps, (B, *map_shape) of any float type, in place of the images.
        """
        frozen = tuple(itertools.takewhile(lambda part: not part.trainable_variables, self.first_parts()))
        return frozen if any(part.weights for part in frozen) else ()

    def map_shape(self) -> tuple[int, ...] | None:
        """The shape of what the frozen part gives for one image; None where nothing is frozen."""
        shape: tuple[int | None, ...] = (None, *self.backbone.input_shape)
        for part in self.frozen_part():
            shape = part.compute_output_shape(shape)
        return tuple(shape[1:]) if self.frozen_part() else None

    def are_maps(self, batch: tf.Tensor) -> bool:
        """Whether a batch holds maps of the frozen part and not images; by its shape."""
        shape = tuple(batch.shape[1:])
        return shape != self.backbone.input_shape and shape == self.map_shape()

    # === Photos ===

    def classify(
        self, paths: Sequence[str | os.PathLike], top: int = 5, batch_size: int = 32
    ) -> list[Answer]:
        """Says what photo files show; they are prepared as in training.

        Args:
            paths: of the files, of any size: JPEG, PNG, GIF, BMP or WebP.
            top: how many classes to name, the best first.
            batch_size: B, photos in a step.

        Returns:
            An `Answer` for each path, one that has a `problem` for a file that cannot be read.

        Raises:
            UserError: the model does not know its class names or how its pictures become square.
        """
        if self.class_names is None or self.picture_fit is None:
            raise UserError(
                "The model does not know its class names, or how its pictures become square: make it with "
                "class_names and picture_fit, or use `python -m dynkhydra_tf.predict` on the run it is of. "
                f"Received: class_names={self.class_names}, picture_fit={self.picture_fit}"
            )
        if isinstance(paths, (str, os.PathLike)):
            raise UserError(f"paths must be a list of files, even of one. Received: {paths!r}")
        size = self.backbone.input_shape[0]
        answers = classify_photos(
            self.answer, paths, self.class_names, size, self.picture_fit, top, batch_size
        )
        return list(answers)

    @functools.cached_property
    def answer(self) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
        """From images (B, H, W, 3) uint8 to probabilities (B, M), and what else a call gives; traced once."""

        def answer(images):
            outputs = self(images)
            return {**outputs, "probabilities": tf.nn.softmax(outputs["logits"])}

        images = tf.TensorSpec((None, *self.backbone.input_shape), tf.uint8)
        return tf.function(answer, input_signature=[images], autograph=False)

    # === Training ===

    def compile(
        self,
        optimizer: str | keras.Optimizer = "rmsprop",
        loss: object = None,
        loss_weights: object = None,
        metrics: list | None = None,
        weighted_metrics: list | None = None,
        jit_compile: bool | str = "auto",
        **kwargs: object,
    ) -> None:
        """Makes the model ready for `fit`; the losses are built in.

        Args:
            optimizer: Keras's, or one of `optimisation.py`.
            metrics, weighted_metrics: lists of Keras metrics of labels (B,) and logits (B, M), which are no
                probabilities; reported besides the model's own.
            kwargs: Keras's `run_eagerly`, `steps_per_execution`, `auto_scale_loss`.

        Raises:
            ValueError: loss, loss_weights or jit_compile; metrics by output name.
        """
        if loss is not None or loss_weights is not None:
            names = ", ".join(f"{name}_weight" for name in self.LOSSES)
            raise ValueError(
                f"The losses are built in, their weights are {names} of {type(self).__name__}(...): leave "
                f"loss and loss_weights out. Received: loss={loss!r}, loss_weights={loss_weights!r}"
            )
        if jit_compile is True:
            raise ValueError(
                "XLA's static shapes undo the routing, and on the CPU it does without oneDNN: leave "
                "jit_compile out. Received: jit_compile=True"
            )
        if isinstance(metrics, dict) or isinstance(weighted_metrics, dict):
            raise ValueError(
                "metrics and weighted_metrics must be lists of metrics of labels and logits. "
                f"Received: metrics={metrics!r}, weighted_metrics={weighted_metrics!r}"
            )
        super().compile(
            optimizer,
            metrics=metrics,
            weighted_metrics=weighted_metrics,
            jit_compile=False,
            **kwargs,
        )

    def train_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """One step on (images, targets): the losses, their gradients, the update."""
        images, targets = self._unpacked(data)
        if images.shape[0]:
            return self._train(images, targets)
        if distribution.is_replica():
            some = tf.shape(images)[0] > 0
            message = "A batch to train on must have an image for each device."
            with tf.control_dependencies([require(some, message, tf.shape(images)[0])]):
                return self._train(tf.identity(images), targets)
        # An empty batch, perhaps: it changes nothing.
        return tf.cond(tf.shape(images)[0] > 0, lambda: self._train(images, targets), self._results)

    def test_step(self, data: tuple) -> dict[str, tf.Tensor]:
        """The same losses and metrics without an update."""
        images, targets = self._unpacked(data)

        def test():
            return self._sums(*self.losses_of(images, targets, training=False))

        told = test() if images.shape[0] else tf.cond(tf.shape(images)[0] > 0, test, self._report.nothing)
        return self._reported(told, distribution.Parcel(tf.nest.flatten(told)))

    def _unpacked(self, data):
        needs = [need for loss in self.loss_terms.values() for need in loss.needs]
        return unpack(data, self.num_classes, needs)

    def _train(self, images, targets):
        moving = distribution.Moving(self.non_trainable_variables)
        with tf.GradientTape() as tape, moving:
            sums, forward, targets = self.losses_of(images, targets, training=True)
            # A replica's share of the mean over all replicas' images; the optimizer adds up the gradients.
            of_all = distribution.add_up([value.images for value in sums.values()])
            shares = zip(sums.items(), of_all, strict=True)
            means = {name: Sums(value.loss, images).mean for (name, value), images in shares}
            total = losses.total(self.loss_terms, means)
            scaled = self.optimizer.scale_loss(total)
        # All this travels with the gradients: a step has two messages, how many images there are, and this.
        moving.send(tf.shape(images)[0], self.branch_images(forward))
        told = self._sums(sums, forward, targets)
        parcel = distribution.Parcel(tf.nest.flatten(told))
        if self.trainable_variables:
            gradients = tape.gradient(scaled, self.trainable_variables)
            if self.optimizer.gradient_accumulation_steps:
                parcel.sums()  # these gradients wait, and travel within a tf.cond
            self.update(gradients, forward)
        moving.apply()
        if self.trainable_variables:
            update_averages(self)
        return self._reported(told, parcel)

    def branch_images(self, forward: Any) -> tf.Tensor | None:
        """Returns how many images each branch ran on, (N,) int32; None where there are none."""
        return None

    def update(self, gradients: list[tf.Tensor], forward: Any) -> None:
        """Applies the gradients, one for each trainable variable; `forward` is the pass that they are of."""
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))

    def _sums(self, sums, forward, targets):
        """The `Sums` of the losses and of the other numbers, by name; updates the metrics of `compile`."""
        if self._compile_metrics is not None:
            weight = targets.get("sample_weight")
            self._compile_metrics.update_state(targets["labels"], forward.logits, weight)
            _check_metrics(self._compile_metrics.metrics)
        numbers = self.numbers(forward, targets)
        return sums | {name: losses.sums_of(values) for name, values in numbers.items()}

    def _reported(self, sums, parcel):
        self._report.update(tf.nest.pack_sequence_as(sums, parcel.sums()))
        return self._results()

    def _results(self):
        own = self._report.results()
        given = self._compile_metrics.result() if self._compile_metrics is not None else {}
        if twice := own.keys() & given.keys():
            raise ValueError(
                f"metrics must have other names than the model's own. Received: {', '.join(twice)}"
            )
        return distribution.packed(own | given)

    @property
    def metrics(self) -> list[keras.Metric]:
        """The running numbers that `fit` and `evaluate` reset and report."""
        given = [self._compile_metrics] if self._compile_metrics is not None else []
        return [*self._report.metrics, *given]

    def make_train_function(self, force: bool = False) -> None:
        """As Keras's, and errors that `targets.require` finds are one line."""
        if not self.optimizer.built:
            with distribution.scope_of(self):
                build_optimizer(self)
        super().make_train_function(force)
        self.train_function: Callable = in_one_line(distribution.unpacking(self.train_function))

    def make_test_function(self, force: bool = False) -> None:
        """As Keras's, and errors that `targets.require` finds are one line."""
        super().make_test_function(force)
        self.test_function: Callable = in_one_line(distribution.unpacking(self.test_function))

    def make_predict_function(self, force: bool = False) -> None:
        """As Keras's, and errors that `targets.require` finds are one line."""
        super().make_predict_function(force)
        self.predict_function: Callable = in_one_line(self.predict_function)

    def _maybe_symbolic_build(self, *args: object, **kwargs: object) -> None:
        """Nothing: the parts are built; under a strategy Keras's would take a batch to trace each once."""

    # === Serialisation ===

    def export(self, filepath: str, format: str = "tf_saved_model", **kwargs: object) -> None:
        """Keras's export of `call` as a SavedModel for images (B, H, W, 3) float32.

        `export.py` makes a faster one with more signatures, and LiteRT and ONNX files.

        Raises:
            ValueError: another format; Keras's converters do not know what the branches need.
        """
        if format != "tf_saved_model":
            raise ValueError(
                f"A model exports itself as tf_saved_model; export.py knows more. Received: format={format!r}"
            )
        images = keras.InputSpec(shape=(None, *self.backbone.input_shape), dtype="float32", name="images")
        super().export(filepath, format=format, **{"input_signature": [images], **kwargs})

    def get_compile_config(self) -> dict | None:
        """Returns `compile`'s arguments, and which variables the optimizer was built for, as indices."""
        config = super().get_compile_config()
        if config and self.optimizer.built:
            index = {id(variable): number for number, variable in enumerate(self.variables)}
            config["optimized"] = [index[id(variable)] for variable in self.optimizer._trainable_variables]
        return config

    def compile_from_config(self, config: dict) -> None:
        """Compiles as `get_compile_config` described, and builds the optimizer for its state to be loaded."""
        optimized = config.get("optimized")
        config = {key: value for key, value in config.items() if key != "optimized"}
        # Version 0.1 took these and did not use them.
        config = {**config, "loss": None, "loss_weights": None, "jit_compile": "auto"}
        self.compile(**keras.saving.deserialize_keras_object(config))
        variables = self.variables
        build_optimizer(self, None if optimized is None else [variables[index] for index in optimized])

    def get_config(self) -> dict:
        """Returns the constructor's arguments that all models have, and which layers are frozen."""
        return {
            "backbone": keras.saving.serialize_keras_object(self.backbone),
            "mean": list(self.mean),
            "std": list(self.std),
            "part_dtype": self.part_dtype,
            "class_names": None if self.class_names is None else list(self.class_names),
            "picture_fit": self.picture_fit,
            **{f"{name}_weight": loss.weight for name, loss in self.loss_terms.items()},
            **{name: value for loss in self.loss_terms.values() for name, value in loss.options.items()},
            "name": self.name,
            "frozen": [path for path, layer in _layers(self) if not layer.trainable],
        }

    @classmethod
    def from_config(cls, config: dict) -> "ImageClassifier":
        """Returns the model that `get_config` described, with new weights."""
        config = dict(config)
        frozen = config.pop("frozen", None)  # models of version 0.1 do not say
        backbone = config["backbone"]
        if isinstance(backbone, dict):
            backbone = keras.saving.deserialize_keras_object(backbone)
        model = cls(**{**config, "backbone": backbone})
        if frozen is not None:
            for path, layer in _layers(model):
                layer.trainable = path not in frozen
        return model


def _checked_photos(class_names, num_classes, picture_fit):
    """The class names as a tuple, and the fit, once they are checked."""
    names = None if class_names is None else tuple(class_names)
    if names is not None and not (len(names) == num_classes and all(isinstance(name, str) for name in names)):
        raise ValueError(f"class_names must be {num_classes} str. Received: class_names={class_names!r}")
    if picture_fit not in (None, *FITS):
        raise ValueError(
            f"picture_fit must be one of {', '.join(FITS)}. Received: picture_fit={picture_fit!r}"
        )
    return names, picture_fit


def _layers(layer, path=""):
    """(path, layer) of a layer and of all within it; the outer first: its `trainable` sets the inner ones'.

    A functional model's layers can come in another order in another process, and have names; elsewhere the
    order is that of the code, and a name may be Keras's, by a counter.
    """
    yield path, layer
    for index, inner in enumerate(layer._layers):
        name = inner.name if hasattr(layer, "operations") else index
        yield from _layers(inner, f"{path}/{name}")


def _check_metrics(metrics):
    """Refuses metrics that would take the logits for probabilities, without a word."""
    for metric in metrics:
        function = getattr(metric, "_fn", None)
        settings = inspect.signature(function).parameters if function else {}
        default = settings["from_logits"].default if "from_logits" in settings else True
        if not getattr(metric, "_fn_kwargs", {}).get("from_logits", default):
            raise ValueError(f"Of logits a metric needs from_logits=True. Received: {metric.name} without")


def accuracies(logits: tf.Tensor, labels: tf.Tensor) -> dict[str, tf.Tensor]:
    """Returns top1 and top5, (B,) floats: whether the class is first by logits (B, M), or among min(5, M)."""
    top5 = min(5, logits.shape[-1])
    return {
        "top1": keras.metrics.sparse_categorical_accuracy(labels, logits),
        "top5": keras.metrics.sparse_top_k_categorical_accuracy(labels, logits, top5),
    }
