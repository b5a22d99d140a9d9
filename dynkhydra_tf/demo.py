"""A page to play with: drop a photo, see its classes, which branches ran, and how long it took.

    python -m dynkhydra_tf.demo --run_dir=runs/digits     # or --model=FILE.keras, --model_dir=served/digits/1

Needs `pip install -e '.[demo]'` (gradio). The slider sets tau, the threshold below which a branch does not
run; an export has one of its own. The page is for this machine alone, unless --host says otherwise.
"""

import dataclasses
import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any

from dynkhydra_tf import cli
from dynkhydra_tf.answers import Answer
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.runs import FinishedRun, load_network

TOP = 5


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    run_dir: str | None = setting(None, "A run of train.py: its model.keras.", path=True)
    model: str | None = setting(None, "A .keras file of train.py instead.", path=True)
    model_dir: str | None = setting(None, "A version that export.py wrote instead.", path=True)
    host: str = setting("127.0.0.1", "Where the page is served; 0.0.0.0 for all who reach this machine.")
    port: int = setting(7860, "Of the page; 0 for one that is free.", least=0, most=65535)

    def check(self) -> None:
        """Checks what goes together."""
        if sum(value is not None for value in (self.run_dir, self.model, self.model_dir)) != 1:
            raise UserError("Give one of --run_dir=DIR, --model=FILE.keras and --model_dir=DIR/VERSION")


@dataclasses.dataclass(frozen=True)
class Network:
    """What the page asks.

    Attributes:
        name: what it is called.
        answer: from the path of a photo and tau to the answer and the milliseconds that the network took.
        tau: the threshold to begin with; None where there is none to set.
        clusters: the class names of each branch; None where they are not known.
    """

    name: str
    answer: Callable[[str, float | None], tuple[Answer, float]]
    tau: float | None = None
    clusters: Sequence[Sequence[str]] | None = None


def main(options: Options) -> None:
    """Serves the page until it is interrupted."""
    check_installed()
    network = of_export(options.model_dir) if options.model_dir else of_model(options)
    page(network).launch(server_name=options.host, server_port=options.port or None, show_error=True)


def check_installed() -> None:
    """Raises UserError where gradio is missing."""
    if importlib.util.find_spec("gradio") is None:
        raise UserError("The page needs gradio: pip install -e '.[demo]'")


# === The networks ===


def of_model(options: Options) -> Network:
    """The network of a run or of a .keras file.

    Raises:
        UserError: it cannot be loaded, or does not know its class names.
    """
    import numpy as np
    import tensorflow as tf

    from dynkhydra_tf.data.photos import photo_batches
    from dynkhydra_tf.data.sources.folder.check import why_bad
    from dynkhydra_tf.plain import Plain

    if options.run_dir:
        run = FinishedRun.open(options.run_dir)
        model, names, fit = run.load_model(), run.class_names, run.fit
    else:
        model = load_network(options.model)
        names, fit = model.class_names, model.picture_fit
    if not names or not fit:
        raise UserError(
            f"{options.model or options.run_dir} does not know its class names: give --run_dir=DIR of its run"
        )
    gated, size = not isinstance(model, Plain), model.backbone.input_shape[0]

    @tf.function(autograph=False)
    def run_network(images, tau):
        outputs = model(images, tau=tau) if gated else model(images)
        return {**outputs, "probabilities": tf.nn.softmax(outputs["logits"])}

    def answer(path, tau):
        for _, images in photo_batches([path], size, fit, 1):
            threshold = tf.constant(tau or 0.0, tf.float32)
            start = time.perf_counter()
            outputs = {name: value.numpy()[0] for name, value in run_network(images, threshold).items()}
            ms = 1e3 * (time.perf_counter() - start)
            return Answer.of(path, outputs["probabilities"], names, TOP, outputs.get("selected")), ms
        return Answer(path, problem=why_bad(path)), 0.0

    run_network(tf.zeros((1, size, size, 3), tf.uint8), tf.constant(0.0))  # traced before it is timed
    name = options.run_dir or options.model
    if not gated:
        return Network(name, answer)
    of_class = np.asarray(model.cluster_of_class)
    clusters = [[names[i] for i in np.flatnonzero(of_class == b)] for b in range(model.num_branches)]
    return Network(name, answer, model.tau, clusters)


def of_export(path: str) -> Network:
    """An exported version, at its own tau.

    Raises:
        UserError: it cannot be loaded.
    """
    from dynkhydra_tf.serving.classification import classify_photos, labels_told, open_export

    model = open_export(path)
    top = min(TOP, labels_told(model))

    def answer(path, tau):
        start = time.perf_counter()
        (found,) = classify_photos(model, [path], top, 1)
        return found, 1e3 * (time.perf_counter() - start)

    return Network(path, answer)


# === The page ===


def page(network: Network) -> Any:
    """Returns the page, a `gradio.Blocks`."""
    import gradio

    def show(path, tau):
        if not path:
            return {}, ""
        answer, ms = network.answer(path, tau)
        if answer.problem:
            raise gradio.Error(f"This file cannot be read: {answer.problem}")
        return dict(answer.top), branches_text(network, answer, ms)

    with gradio.Blocks(title=network.name) as blocks:
        gradio.Markdown(f"## {network.name}")
        with gradio.Row():
            with gradio.Column():
                photo = gradio.Image(
                    type="filepath", sources=["upload", "clipboard"], label="a photo", height=320
                )
                tau = gradio.Slider(
                    0,
                    0.99,
                    value=network.tau or 0.0,
                    step=0.01,
                    label="tau: a branch of less gate probability does not run",
                    visible=network.tau is not None,
                )
            with gradio.Column():
                classes = gradio.Label(label="classes", num_top_classes=TOP)
                branches = gradio.Markdown()
        for changed in (photo.change, tau.release):
            changed(show, [photo, tau], [classes, branches], api_name="classify")
    return blocks


def branches_text(network: Network, answer: Answer, ms: float) -> str:
    """Says in Markdown which branches ran, with their classes, and how long it took."""
    blocks = [f"**{ms:.1f} ms**"]
    if answer.branches is not None:
        of = f" of {len(network.clusters)}" if network.clusters else ""
        blocks.append(f"**{len(answer.branches)}{of} branches ran{':' if answer.branches else '.'}**")
    if answer.branches:
        lines = [
            f"- branch {branch}" + (f": {', '.join(network.clusters[branch])}" if network.clusters else "")
            for branch in answer.branches
        ]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    cli.run(main, Options)
