"""Trains a Hydra, or the plain network beside it: class partition, model, evaluation, in one run directory.

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

from dynkhydra_tf import cli, figures
from dynkhydra_tf.costs import hydra_costs, inference_flops, inference_parameters, plain_costs
from dynkhydra_tf.data import Augmentation, evaluation_batches, load_data, steps_per_epoch, training_batches
from dynkhydra_tf.evaluation import evaluate, evaluate_plain
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.old_flags import (
    data_settings,
    default_run_dir,
    define_training_flags,
    differing_flags,
    learning_rate_drops,
    make_backbone,
    to_flagfile,
)
from dynkhydra_tf.partition import ClassPartition, check_source, make_partition
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.runs import RunDirectory
from dynkhydra_tf.tables import table
from dynkhydra_tf.training import fit, learning_rate_schedule


def main(flags):
    """Runs one training from flags to results."""
    # === Data and run directory: what can be wrong is found before any long work ===
    run_dir = os.path.expanduser(flags.run_dir or default_run_dir(flags))
    run = RunDirectory.open(run_dir, lambda path: differing_flags(flags, path), overwrite=flags.overwrite)
    branched = flags.system == "hydra"
    if branched and not run.continued:
        check_source(flags.partition, flags.feature_extractor, flags.feature_weights, flags.partition_file)
    data = load_data(**data_settings(flags))
    if run.continued:
        run.check_data(data.record)
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

    # === Class partition (Algorithm 2); a plain network has none ===
    partition = None
    if branched and run.continued:
        partition = ClassPartition.load(run.partition, data.name, data.class_names)
    elif branched:
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
    if not run.continued:
        run.start(to_flagfile(flags), partition, data.record)

    # === Model: a new one, or the last checkpoint's ===
    keras.utils.set_random_seed(flags.seed)
    backbone = make_backbone(flags, data.image_size)
    model, done = run.load_checkpoint()
    if model is None:
        part_dtype = "mixed_bfloat16" if flags.mixed_precision else "float32"
        settings = {"mean": data.mean, "std": data.std, "part_dtype": part_dtype}
        if branched:
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
                **settings,
            )
        else:
            model = Plain(backbone, data.num_classes, **settings)
        model.compile(keras.optimizers.AdamW(learning_rate, weight_decay=flags.weight_decay))
        model.optimizer.build(model.trainable_variables)  # else the first step is traced twice
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
    plain = plain_costs(backbone, data.num_classes)
    if branched:
        results, costs = evaluate(model, test).at(model.tau), hydra_costs(model)
        active = results["active_branches"]
        flops = {
            **costs["flops"],
            "total": inference_flops(costs["flops"], active),
            "all_branches": inference_flops(costs["flops"], model.num_branches),
            "plain": plain["flops"],
        }
        parameters = {
            **costs["parameters"],
            "total": inference_parameters(costs["parameters"]),
            "plain": plain["parameters"],
        }
        figures.save_branch_use(results, partition.clusters, run.path / "branches.png")
    else:
        results = evaluate_plain(model, test)
        flops, parameters = {"total": plain["flops"]}, {"total": plain["parameters"]}
    rows = run.metric_rows()
    measured = ("top1", "top5", "gater_accuracy", "active_branches")
    summary = {
        **{key: results[key] for key in measured if key in results},
        "best_epoch": int(run.best_row()["epoch"]),
        "flops": flops,
        "parameters": parameters,
        "seconds_per_epoch": statistics.median(row["seconds"] for row in rows),
        "epochs": flags.epochs,
        "seed": flags.seed,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__},
    }
    run.write_summary(summary)
    figures.save_learning_curves(rows, flags.top_k, run.path / "learning_curves.png")

    # === Tell ===
    def row(name, branches, count):
        return [name, branches, f"{count / 1e6:.1f}", f"{count / plain['flops']:.2f}"]

    gating, lines = "", [["per image", "branches", "MFLOPs", "x plain"]]
    if branched:
        gating = f"; gater {results['gater_accuracy']:.2%}; tau {model.tau:g}"
        count = str(model.num_branches)
        lines.append(row("this model (mean lambda)", f"{active:.2f}", flops["total"]))
        lines.append(row(f"all {count} branches", count, flops["all_branches"]))
    lines.append(row(f"plain {flags.backbone}, d={flags.depth}", "-", plain["flops"]))
    print(
        f"\n{data.name}, {data.sizes['test']} test images: top-1 {results['top1']:.2%}, top-5 "
        f"{results['top5']:.2%}{gating}\n\n{table(lines)}"
    )
    print(f"\nEverything is in {run.path}: {', '.join(sorted(path.name for path in run.path.iterdir()))}")


if __name__ == "__main__":
    cli.run(main, define_training_flags)
