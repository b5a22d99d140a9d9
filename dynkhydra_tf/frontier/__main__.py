"""Finds the best network for your images and a budget of milliseconds: trains, times, recommends.

    python -m dynkhydra_tf.frontier --data_dir=my_photos --budget_ms=2

All lie on one pretrained stem that stays as it is, and get the same recipe: a linear head, the plain network
with tails of several widths, and a Hydra at several thresholds. Each is timed as export.py serves it: one
image, one thread, TensorFlow's C API. Recommended is the fastest within a point of the most accurate or, with
--budget_ms, the most accurate within it, whatever it is; the images held out decide, the test images tell
what the choice is worth. Each network is a run of train.py in a directory of its own below --output_dir; the
same command goes on where it was stopped. All other flags are train.py's, on top of those of
configs/folder_frontier.cfg. Writes frontier.json, frontier.png, frontier.html.
"""

import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Sequence

from dynkhydra_tf import cli, flags
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.files import check_writable
from dynkhydra_tf.runs import RunDirectory

CONFIG = "--flagfile=configs/folder_frontier.cfg"
TIMED = 64  # images, at batch 1


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command; all others are flags of train.py."""

    budget_ms: float | None = setting(None, "The most milliseconds that an image may take.", above=0)
    margin: float = setting(
        1.0, "Without a budget: how many points below the best the recommended one may lie.", least=0
    )
    taus: tuple[float, ...] = setting(
        (0.0, 0.2, 0.5), "Thresholds of the Hydra, besides its own.", least=0, below=1
    )
    seeds: tuple[int, ...] = setting((), "Each network once with each of these; default: --seed.", least=0)
    seconds: float = setting(5.0, "Time at least so long, and five rounds.", least=0)
    output_dir: str | None = setting(
        None, "Where everything is written; default: runs/FOLDER-frontier.", path=True
    )


def main(options: Options, train_flags: Sequence[str]) -> None:
    """Trains, measures, recommends.

    Args:
        options: the flags of this command.
        train_flags: flags of train.py.
    """
    # === Plan: all that can be wrong is found before any long work ===
    start = time.monotonic()
    settings = flags.parse([CONFIG, *train_flags])
    directory = pathlib.Path(options.output_dir or f"{settings.run_dir}-frontier")
    check_writable(directory, "output_dir")

    # Only now: they load Keras, which --help and a wrong flag can do without.
    import tensorflow as tf

    from dynkhydra_tf import train
    from dynkhydra_tf.backbones.pretrained import open_network
    from dynkhydra_tf.benchmark.environment import describe
    from dynkhydra_tf.benchmark.timing import timed_images
    from dynkhydra_tf.data import open_data
    from dynkhydra_tf.frontier import report
    from dynkhydra_tf.frontier.beside import process_beside, result_of
    from dynkhydra_tf.frontier.candidates import candidates, that_fit
    from dynkhydra_tf.frontier.choice import recommend, sureness, verdict
    from dynkhydra_tf.frontier.measure import measure, prepare
    from dynkhydra_tf.frozen_maps import check_cache
    from dynkhydra_tf.sizing import fill_in

    tf.get_logger().setLevel("ERROR")  # each network is traced anew, of which it would warn
    settings = fill_in(settings)
    tried = candidates(settings, str(directory), options.seeds)
    if settings.data.validation_fraction == 0:
        raise UserError("The choice is made on images held out from training: give --validation_fraction=0.1")
    check_cache(settings.place.cache_dir)
    # Before the images are looked at: a network that cannot be had is told in a moment.
    network = settings.network
    tried = that_fit(tried, open_network(network.backbone, settings.data.image_size, network.weights))
    data = open_data(settings.data, settings.place.cache_dir)
    if not data.sizes["validation"]:
        raise UserError(
            "The choice is made on images held out from training, and there are none: give a larger "
            f"--validation_fraction. Received: {settings.data.validation_fraction}"
        )
    runs = [run for candidate in tried for run in candidate.runs]
    for run in runs:
        with RunDirectory.open(run):
            pass
    images = timed_images(data, 1, TIMED)

    # === Train what is not trained yet; meanwhile, what is trained is exported ===
    number, networks = 0, {}
    with tempfile.TemporaryDirectory() as folder, process_beside() as beside:
        for candidate in reversed(tried):  # what takes longest comes first: its export is done when all are
            for run in candidate.runs:
                number += 1
                with RunDirectory.open(run) as made:
                    state = (
                        "is trained" if made.finished else "goes on" if made.continued else "is trained now"
                    )
                    place = f"[{number}/{len(runs)}] {candidate.name}, seed {run.optimisation.seed}"
                    print(f"\n{place}, {state}: {made.path}", flush=True)
                    if not made.finished:
                        train.train(run, made)
            export = os.path.join(folder, str(number))
            networks[candidate.name] = beside.submit(prepare, candidate, options.taus, images, export)

        # === Measure, choose ===
        print("\nAccuracy and time of all ...", flush=True)
        points = measure([result_of(networks[each.name]) for each in tried], images, options.seconds)
    choice = recommend(points, options.budget_ms, options.margin / 100)
    name = pathlib.Path(settings.run_dir).name
    found = {
        "dataset": name,
        "classes": data.num_classes,
        "images": {split: data.sizes[split] for split in ("train", "validation", "test")},
        "budget_ms": options.budget_ms,
        "environment": describe("default"),
        "points": points,
        "chosen": None if choice.point is None else points.index(choice.point),
        "reason": choice.reason,
        "sureness": sureness(points, data.sizes["validation"], options.margin / 100),
        "verdict": verdict(points, data.sizes["test"]),
        "export": None if choice.point is None else report.export_command(choice.point, name),
        "seconds": round(time.monotonic() - start, 1),
    }

    # === Tell, write ===
    report.write(found, directory)
    print(f"\n{report.text(found)}")
    files = ", ".join((report.JSON, report.PICTURE, report.PAGE))
    print(f"\n{found['seconds']:.0f} s in all. Written to {directory}: {files}")


if __name__ == "__main__":
    cli.run(main, Options, positional="flags of train.py", at_least=0, pass_on=True)
