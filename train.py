"""Trains a Hydra: the class partition, the model, the evaluation, all into one run directory.

    python train.py --flagfile=configs/digits.cfg

The flags are in dynkhydra_tf/flags.py (`python train.py --help`). The same command goes on where a
killed run stopped.
"""

import os
import statistics
import sys

import dynkhydra_tf  # noqa: F401 - first, for it sets what TensorFlow reads when it is imported

# isort: split
import keras
import numpy as np
import tensorflow as tf

from dynkhydra_tf import cli
from dynkhydra_tf.analysis import figures
from dynkhydra_tf.backbones import BACKBONES
from dynkhydra_tf.costs import hydra_costs, inference_flops, plain_costs
from dynkhydra_tf.data import Augmentation, evaluation_batches, load_data, steps_per_epoch, training_batches
from dynkhydra_tf.evaluation import evaluate, table
from dynkhydra_tf.flags import define_training_flags, differing_flags, learning_rate_drops, to_flagfile
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.partition import ClassPartition, check_source, make_partition
from dynkhydra_tf.runs import RunDirectory
from dynkhydra_tf.training import fit, learning_rate_schedule


def main(flags):
    """Runs one training from flags to results."""
    # === Data and run directory: what can be wrong is found before any long work ===
    run_dir = os.path.expanduser(flags.run_dir or f"runs/{flags.dataset}")
    run = RunDirectory.open(run_dir, lambda path: differing_flags(flags, path), overwrite=flags.overwrite)
    if not run.continued:
        check_source(flags.partition, flags.feature_extractor, flags.feature_weights, flags.partition_file)
    data = load_data(flags.dataset, flags.data_dir, flags.validation_fraction)
    steps = steps_per_epoch(data, flags.batch_size)
    flip = data.flip if flags.flip is None else flags.flip
    augment = Augmentation(data.image_size, data.mean, flags.shift, flip, flags.cutout)
    learning_rate = learning_rate_schedule(
        flags.schedule,
        flags.learning_rate,
        steps,
        flags.epochs,
        learning_rate_drops(flags),
        flags.warmup_epochs,
    )

    # === Class partition (Algorithm 2) ===
    if run.continued:
        partition = ClassPartition.load(run.partition, data.name, data.class_names)
    else:
        partition = make_partition(
            data,
            flags.partition,
            flags.num_branches,
            flags.seed,
            feature_extractor=flags.feature_extractor,
            feature_weights=flags.feature_weights,
            partition_file=flags.partition_file,
            cache_dir=flags.cache_dir and os.path.expanduser(flags.cache_dir),
            images_per_class=flags.feature_images_per_class or None,
        )
        run.start(to_flagfile(flags), partition)

    # === Model: a new one, or the last checkpoint's ===
    keras.utils.set_random_seed(flags.seed)
    backbone = BACKBONES[flags.backbone](
        depth=flags.depth,
        stem_width=flags.stem_width,
        branch_width=flags.branch_width,
        gater_width=flags.gater_width,
        image_size=data.image_size,
    )
    model, done = run.load_checkpoint()
    if model is None:
        model = Hydra(
            backbone,
            partition.cluster_of_class,
            top_k=flags.top_k,
            tau=flags.tau,
            train_tau=flags.train_tau,
            combine=flags.combine,
            routing=flags.routing,
            ensemble_weight=flags.ensemble_weight,
            gater_weight=flags.gater_weight,
            branch_weight=flags.branch_weight,
            mean=data.mean,
            std=data.std,
            part_dtype="mixed_bfloat16" if flags.mixed_precision else "float32",
        )
        model.compile(keras.optimizers.AdamW(learning_rate, weight_decay=flags.weight_decay))
    else:
        print(f"{run.path}: going on after step {done}, epoch {done / steps:.2f} of {flags.epochs}.")
    run.drop_metrics_after(done)

    # === Train ===
    test = evaluation_batches(data, "test", 256)
    watched = evaluation_batches(data, "validation", 256) if data.sizes["validation"] else test
    fit(
        model,
        run,
        training_batches(data, flags.batch_size, flags.epochs, flags.seed, augment, initial_step=done),
        watched,
        flags.epochs,
        steps,
        done,
        verbose=1 if sys.stdout.isatty() else 2,
    )
    run.save_model(model)

    # === Evaluate on the test split, count, write ===
    evaluation = evaluate(model, test)
    results = evaluation.at(model.tau)
    costs, plain = hydra_costs(model), plain_costs(backbone, data.num_classes)
    flops, active = costs["flops"], results["active_branches"]
    rows = run.metric_rows()
    summary = {
        **{key: results[key] for key in ("top1", "top5", "gater_accuracy", "active_branches")},
        "best_epoch": int(run.best_row()["epoch"]),
        "flops": {
            **flops,
            "total": inference_flops(flops, active),
            "all_branches": inference_flops(flops, model.num_branches),
            "plain": plain["flops"],
        },
        "parameters": {
            **costs["parameters"],
            "total": sum(costs["parameters"].values()) - costs["parameters"]["heads"],
            "plain": plain["parameters"],
        },
        "seconds_per_epoch": statistics.median(row["seconds"] for row in rows),
        "epochs": flags.epochs,
        "seed": flags.seed,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__},
    }
    run.write_summary(summary)
    figures.save_learning_curves(rows, model.top_k, run.path / "learning_curves.png")
    figures.save_branch_use(results, partition.clusters, run.path / "branches.png")

    # === Tell ===
    def row(name, branches, count):
        return [name, branches, f"{count / 1e6:.1f}", f"{count / plain['flops']:.2f}"]

    print(
        f"\n{data.name}, {data.sizes['test']} test images: top-1 {results['top1']:.2%}, top-5 "
        f"{results['top5']:.2%}; gater {results['gater_accuracy']:.2%}; tau {model.tau:g}\n"
    )
    print(
        table(
            [
                ["per image", "branches", "MFLOPs", "x plain"],
                row("this model (mean lambda)", f"{active:.2f}", summary["flops"]["total"]),
                row(
                    f"all {model.num_branches} branches",
                    str(model.num_branches),
                    summary["flops"]["all_branches"],
                ),
                row(f"plain {flags.backbone}, d={flags.depth}", "-", plain["flops"]),
            ]
        )
    )
    print(f"\nEverything is in {run.path}: {', '.join(sorted(path.name for path in run.path.iterdir()))}")


if __name__ == "__main__":
    cli.run(main, define_training_flags)
