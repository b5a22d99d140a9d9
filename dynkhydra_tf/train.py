"""Trains a Hydra, or the plain network beside it: class partition, model, evaluation, in one run directory.

    python train.py --flagfile=configs/digits.cfg

The flags are in dynkhydra_tf/settings.py (`python train.py --help`). The same command goes on where a
killed run stopped.
"""

import itertools
import os
import statistics
from typing import Any

from dynkhydra_tf import cli, figures
from dynkhydra_tf.runs import FinishedRun, RunDirectory, RunFile, open_run
from dynkhydra_tf.settings import Settings
from dynkhydra_tf.tables import table
from dynkhydra_tf.workers import ALONE, Workers, open_workers


def main(settings: Settings) -> None:
    """Trains what the settings describe, or goes on with it; tells what came out."""
    if settings.network.cut == "list":
        from dynkhydra_tf.cut_list import cut_list

        print(cut_list(settings))
        return
    how = settings.distribution
    with open_workers(how.distribute, how.wait_for_workers) as workers:
        with open_run(settings, workers) as run:
            if run.finished:
                more = settings.optimisation.schedule == "piecewise"
                print(
                    f"{run.path} is finished, with --epochs={settings.optimisation.epochs}. "
                    f"{'More of them go on from here, --overwrite' if more else '--overwrite'} starts anew."
                )
            else:
                train(settings, run, workers)
        if workers.is_chief:
            tell(FinishedRun.open(run.path))


def train(settings: Settings, run: RunDirectory, workers: Workers = ALONE) -> None:
    """Runs one training from settings to results."""
    # Only now: to see the help, a wrong flag or the results of a finished run takes no more than a moment.
    import keras
    import numpy as np
    import tensorflow as tf

    from dynkhydra_tf import distribution
    from dynkhydra_tf.accuracy import evaluate, evaluate_plain
    from dynkhydra_tf.agreement import facts_of, state_of
    from dynkhydra_tf.averaging import build_optimizer, end_averages
    from dynkhydra_tf.backbones import open_backbone
    from dynkhydra_tf.costs import hydra_costs, inference_flops, inference_parameters, plain_costs
    from dynkhydra_tf.data import (
        find_entry,
        open_data,
        part_of_batch,
        steps_per_epoch,
    )
    from dynkhydra_tf.data.augment import check_augmentation
    from dynkhydra_tf.data.sources.folder.listing import check_outside
    from dynkhydra_tf.distillation import open_teacher
    from dynkhydra_tf.frozen_maps import check_cache
    from dynkhydra_tf.hydra import Hydra
    from dynkhydra_tf.machine import describe_machine, part_dtype
    from dynkhydra_tf.optimisation import make_optimizer
    from dynkhydra_tf.partition import check_source, make_partition
    from dynkhydra_tf.plain import Plain
    from dynkhydra_tf.regression import start_classifier
    from dynkhydra_tf.sizing import fill_in, warn_of_small_clusters
    from dynkhydra_tf.stages import batches_to_test, stages
    from dynkhydra_tf.training import fit
    from dynkhydra_tf.upcycling import open_source

    strategy = workers.strategy or distribution.open_strategy(settings.distribution.distribute)

    # === Data: what can be wrong is found before any long work, and before the run is started ===
    if settings.network.trains_on_maps:
        check_cache(settings.place.cache_dir)
    if settings.data.dataset == "folder":
        check_outside(settings.data.data_dir, run_dir=run.path, cache_dir=settings.place.cache_dir)
    settings = run.settings = fill_in(run.settings)
    network, how, optimisation = settings.network, settings.partition, settings.optimisation
    distillation = settings.distillation
    branched = network.system == "hydra"
    backbone = give = source = teacher = None
    if branched and not run.continued:
        check_source(how.partition, how.feature_extractor, how.feature_weights, how.partition_file)
    if not run.continued:
        size = settings.data.image_size or find_entry(settings.data.dataset).image_size
        backbone, give = open_backbone(network, size)
        source = open_source(network, backbone, run.path)
    data = open_data(settings.data, settings.place.cache_dir)
    if run.continued:
        run.check_data(data.record)
    if source:
        source.check_classes(data.class_names)
    if distillation.distill:
        teacher = open_teacher(distillation.distill, data, part_dtype(optimisation.mixed_precision), run.path)
    if branched:
        warn_of_small_clusters(data.num_classes, network.num_branches)
    part_of_batch(optimisation.batch_size, (0, distribution.count_replicas(strategy)))  # it can be divided
    distribution.set_sync_batch_norm(strategy, settings.distribution.sync_batch_norm)
    steps = steps_per_epoch(data, optimisation.batch_size)
    check_augmentation(settings.augmentation, data)
    if workers.count > 1:
        workers.agree(facts_of(settings, data))
    with distribution.scope(strategy):
        optimizer = make_optimizer(optimisation, steps)

    # === Class partition (Algorithm 2); a plain network has none ===
    partition = None
    if branched and run.continued:
        partition = run.load_partition(data.name, data.class_names)
    elif branched:
        partition = make_partition(
            data,
            how.partition,
            network.num_branches,
            optimisation.seed,
            feature_extractor=how.feature_extractor,
            feature_weights=how.feature_weights,
            partition_file=how.partition_file,
            cache_dir=settings.place.cache_dir,
            images_per_class=how.feature_images_per_class or None,
            workers=workers,
        )

    # === Model: the last checkpoint's, or a new one ===
    with distribution.scope(strategy):
        model, done = run.load_checkpoint() if run.continued else (None, 0)
    if model is None and backbone is None:  # killed before the first one
        backbone, give = open_backbone(network, data.image_size)
        source = open_source(network, backbone)
    with distribution.scope(strategy):
        keras.utils.set_random_seed(optimisation.seed)
        if model is None:
            given: dict[str, Any] = {
                # A network of Keras brings its own normalisation: no pass over the images for that.
                **({} if network.is_of_keras else {"mean": data.mean, "std": data.std}),
                "class_names": data.class_names,
                "picture_fit": data.fit,
                "part_dtype": part_dtype(optimisation.mixed_precision),
                "label_smoothing": optimisation.label_smoothing,
                "distill_weight": distillation.distill_weight,
                "distill_temperature": distillation.distill_temperature,
            }
            if branched:
                model = Hydra(
                    backbone,
                    partition.cluster_of_class,
                    top_k=network.top_k,
                    tau=network.tau,
                    train_tau=network.train_tau,
                    combine=network.combine,
                    combiner_conv=network.combiner == "conv",
                    trunk=network.trunk,
                    exit_weight=network.exit_weight,
                    exit_confidence=network.exit_confidence,
                    routing=network.routing,
                    ensemble_weight=network.ensemble_weight,
                    gater_weight=network.gater_weight,
                    branch_weight=network.branch_weight,
                    gater_targets=distillation.gater_targets,
                    **given,
                )
            else:
                model = Plain(backbone, data.num_classes, **given)
            if give:
                model.set_first_weights(give)
            if source:
                source.start(model)
            model.compile(optimizer)
            build_optimizer(model)
        else:
            print(
                f"{run.path}: going on after step {done}, epoch {done / steps:.2f} of {optimisation.epochs}."
            )

    # === Train: on images, or on the maps of what is frozen ===
    if workers.count > 1:
        workers.agree(state_of(model))
    to_come = stages(settings, model, data, steps, done, (workers.index, workers.count))
    first = next(to_come)
    if run.continued:
        run.go_on(done)
    else:
        run.start(partition, data.record)
        if source:
            run.save_checkpoint(model)  # to go on needs the source no more
    for stage in itertools.chain([first], to_come):
        batches, watched = stage.batches, stage.watched
        if teacher:
            last_step = round(distillation.distill_until * optimisation.epochs * steps)
            batches = teacher.beside_training(batches, stage.done, last_step)
            watched = teacher.beside_validation(watched)
        if settings.fits_classifier and stage.maps:
            start_classifier(model, run, stage)
            if network.freeze == "all":
                break  # that was all there is to train
        fit(
            model,
            run,
            batches,
            watched,
            stage.end,
            steps,
            stage.done,
            patience=optimisation.early_stopping,
            evaluate_every=optimisation.evaluate_every,
            checkpoint_every=settings.place.checkpoint_every,
            workers=workers,
        )
    if optimisation.early_stopping:
        with distribution.scope(strategy):
            model = run.load_best()
    if not workers.is_chief:
        return
    end_averages(model)
    run.save_model(model)

    # === Evaluate on the test split, count, write ===
    test = batches_to_test(settings, model, data)
    plain = plain_costs(model.backbone, data.num_classes, None if branched else model.network)
    if branched:
        results, costs = evaluate(model, test).at(model.tau), hydra_costs(model)
        flops = {
            **costs["flops"],
            "total": inference_flops(costs["flops"], results["active_branches"], results.get("exits", 0.0)),
            "all_branches": inference_flops(costs["flops"], model.num_branches),
            "plain": plain["flops"],
        }
        parameters = {
            **costs["parameters"],
            "total": inference_parameters(costs["parameters"]),
            "plain": plain["parameters"],
        }
        figures.save_branch_use(results, partition.clusters, run.path / RunFile.BRANCHES)
    else:
        results = evaluate_plain(model, test)
        flops, parameters = {"total": plain["flops"]}, {"total": plain["parameters"]}
    rows = run.metric_rows()
    figures.save_learning_curves(rows, network.top_k, run.path / RunFile.LEARNING_CURVES)
    measured = ("top1", "top5", "gater_accuracy", "active_branches")
    measured += ("stem_top1", "trunk_top1", "exit_confidence", "exits")
    summary = {
        **{key: results[key] for key in measured if key in results},
        "best_epoch": int(run.best_row()["epoch"]),
        "flops": flops,
        "parameters": parameters,
        "seconds_per_epoch": statistics.median(row["seconds"] for row in rows),
        "epochs": optimisation.epochs,
        "seed": optimisation.seed,
        "part_dtype": model.part_dtype,
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__},
        "machine": describe_machine(),
    }
    run.finish(summary)


def tell(run: FinishedRun) -> None:
    """Prints what a run's summary says."""
    summary, network = run.summary, run.settings.network
    flops = summary["flops"]
    plain = flops.get("plain", flops["total"])

    def row(name, branches, count):
        return [name, branches, f"{count / 1e6:.1f}", f"{count / plain:.2f}"]

    gating, lines = "", [["per image", "branches", "MFLOPs", "x plain"]]
    if network.system == "hydra":
        gating = f"; gater {summary['gater_accuracy']:.2%}; tau {network.tau:g}"
        for part in ("stem", "trunk"):
            if f"{part}_top1" in summary:
                gating += f"; {part} {summary[f'{part}_top1']:.2%}, {summary['exits']:.1%} exit"
        count = str(network.num_branches)
        lines.append(row("this model (mean lambda)", f"{summary['active_branches']:.2f}", flops["total"]))
        lines.append(row(f"all {count} branches", count, flops["all_branches"]))
    depth = "" if network.is_of_keras else f", d={network.depth}"
    lines.append(row(f"plain {os.path.basename(network.backbone)}{depth}", "-", plain))
    images = f", {run.sizes['test']} test images" if run.sizes else ""
    print(
        f"\n{run.settings.data.dataset}{images}: top-1 {summary['top1']:.2%}, top-5 "
        f"{summary['top5']:.2%}{gating}\n\n{table(lines)}"
    )
    names = sorted(path.name for path in run.path.iterdir() if not path.name.startswith("."))
    print(f"\nEverything is in {run.path}: {', '.join(names)}")


if __name__ == "__main__":
    cli.run(main, Settings)
