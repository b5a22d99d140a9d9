"""FLOPs and parameters of a network by part; as a command, beside the paper's, without data or training.

    python -m dynkhydra_tf.costs --flagfile=configs/cifar100.cfg

FLOPs are 2 x the multiply-adds of convolutions and dense layers for one image, as in the paper's
tables; element-wise operations are not counted. cost(image) = stem + gater + lambda branch + combiner;
where a shared trunk answers alone, without the last two, where a classifier on the stem's map does, the stem
and that.
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dynkhydra_tf import cli
from dynkhydra_tf import paper_numbers as paper
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.settings import Settings
from dynkhydra_tf.tables import table

if TYPE_CHECKING:  # they load Keras, which --help can do without
    import keras

    from dynkhydra_tf.backbones import Backbone

# Of the paper's data sets; to ask tensorflow-datasets would need the network.
NUM_CLASSES = {"cifar100": 100, "cub200": 200, "digits": 10, "food101": 101, "imagenet32": 1000}


def branched_costs(
    backbone: "Backbone",
    num_classes: int,
    num_branches: int,
    trunk: bool = False,
    stem_exit: bool = False,
    combiner_conv: bool = True,
) -> dict[str, dict[str, int]]:
    """Returns what a `Hydra` on a backbone costs by part; one branch is built, and counts for all.

    Args:
        backbone: `Backbone`. num_classes: M. num_branches: nb.
        trunk: whether the gater shares its trunk; its classifier has then M outputs.
        stem_exit: whether there is a classifier on the stem's map.
        combiner_conv: whether the combiner has its convolution.

    Returns:
        {"flops": {"stem", "gater", "branch", "combiner"}, "parameters": {"stem", "gater", "branches",
        "combiner", "heads"}}, ints; with `stem_exit` both have "exit", too. A branch's FLOPs are those of one
        branch; parameters are those of all. The heads are not part of inference, nor of its FLOPs.
    """
    from dynkhydra_tf.flop_count import count_flops
    from dynkhydra_tf.heads import BranchHeads
    from dynkhydra_tf.model_parts import make_combiner, make_exit, make_gater, make_trunk_gater

    stem, features_shape = _built(backbone.stem(), backbone.input_shape)
    gater = make_trunk_gater(backbone, num_classes) if trunk else make_gater(backbone, num_branches)
    gater, _ = _built(gater, features_shape)
    branch, projection_shape = _built(backbone.branch(), features_shape)
    combiner = make_combiner(projection_shape[-1], num_classes, conv=combiner_conv)
    combiner, _ = _built(combiner, projection_shape)
    heads = BranchHeads(num_branches, num_classes)
    heads.build((None, projection_shape[-1]))
    costs = {
        "flops": {
            "stem": count_flops(stem, backbone.input_shape),
            "gater": count_flops(gater, features_shape),
            "branch": count_flops(branch, features_shape),
            "combiner": count_flops(combiner, projection_shape),
        },
        "parameters": {
            "stem": stem.count_params(),
            "gater": gater.count_params(),
            "branches": num_branches * branch.count_params(),
            "combiner": combiner.count_params(),
            "heads": heads.count_params(),
        },
    }
    if stem_exit:
        early, _ = _built(make_exit(features_shape, num_classes), features_shape)
        costs["flops"]["exit"] = count_flops(early, features_shape)
        costs["parameters"]["exit"] = early.count_params()
    return costs


def _built(layer, input_shape):
    """The layer with its weights, and its output's shape, both without the batch axis."""
    layer.build((None, *input_shape))
    return layer, tuple(layer.compute_output_shape((None, *input_shape))[1:])


def hydra_costs(model: "keras.Model") -> dict[str, dict[str, int]]:
    """Returns what a `Hydra` costs by part, see `branched_costs`; it may have no heads."""
    costs = branched_costs(
        model.backbone,
        model.num_classes,
        model.num_branches,
        model.trunk,
        stem_exit=model.exit is not None,
        combiner_conv=model.combiner_conv,
    )
    if not model.heads:
        costs["parameters"]["heads"] = 0
    return costs


def inference_flops(flops: Mapping[str, int], active_branches: float, exits: float = 0.0) -> float:
    """Returns the FLOPs of an image that runs `active_branches` branches (a mean, lambda, is fine).

    Args:
        flops: by part, of `hydra_costs`.
        active_branches: 0 for an image that exits; the mean counts these.
        exits: the share of such images, which do not run the combiner either, nor, where they exit at the
            stem, the gater.
    """
    if "exit" in flops:
        always, unless_exit = flops["stem"] + flops["exit"], flops["gater"] + flops["combiner"]
    else:
        always, unless_exit = flops["stem"] + flops["gater"], flops["combiner"]
    return always + (1 - exits) * unless_exit + active_branches * flops["branch"]


def inference_parameters(parameters: Mapping[str, int]) -> int:
    """Returns the parameters of all parts but the heads."""
    return sum(parameters.values()) - parameters["heads"]


def plain_costs(
    backbone: "Backbone", num_classes: int, network: "keras.Layer | None" = None
) -> dict[str, int]:
    """Returns {"flops", "parameters"} of the plain network of the same depth, its classifier included.

    Args:
        backbone: `Backbone`. num_classes: M.
        network: that network, where it is there; else it is built.
    """
    from dynkhydra_tf.flop_count import count_flops
    from dynkhydra_tf.model_parts import make_plain

    network = network or _built(make_plain(backbone, num_classes), backbone.input_shape)[0]
    return {"flops": count_flops(network, backbone.input_shape), "parameters": network.count_params()}


# === The command ===


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command: those of training, and two more."""

    training: Settings = dataclasses.field(default_factory=Settings)
    num_classes: int | None = setting(
        None, f"M; default: the data set's, known for {', '.join(NUM_CLASSES)}.", least=2
    )
    depths: tuple[int, ...] = setting((), "d, such as 1,2,3; default: all that the paper has.", least=1)


def main(options: Options) -> None:
    """Prints the costs of what the flags describe, at each depth."""
    from dynkhydra_tf.backbones import make_backbone
    from dynkhydra_tf.data import find_entry
    from dynkhydra_tf.sizing import branches_for, top_k_for

    data, network = options.training.data, options.training.network
    num_classes = options.num_classes or NUM_CLASSES.get(data.dataset)
    if num_classes is None:
        raise UserError(f"The classes of {data.dataset} are not known here; give --num_classes=M")
    nb = network.num_branches or branches_for(num_classes)
    network = dataclasses.replace(network, num_branches=nb, top_k=network.top_k or top_k_for(nb))
    own_size = find_entry(data.dataset).image_size
    image_size = data.image_size or own_size
    as_paper = (num_classes, image_size) == (NUM_CLASSES.get(data.dataset), own_size)
    results = paper.RESULTS.get((data.dataset, network.backbone), {}) if as_paper else {}
    branched, plain = {}, {}
    depths = sorted(options.depths) or _paper_depths(results, network.system) or [network.depth]
    for depth in depths:
        backbone = make_backbone(network, image_size, depth)
        plain[depth] = plain_costs(backbone, num_classes)
        if network.system == "hydra":
            branched[depth] = branched_costs(
                backbone,
                num_classes,
                network.num_branches,
                network.trunk,
                stem_exit=bool(network.exit_weight),
                combiner_conv=network.combiner == "conv",
            )

    print(f"{network.backbone} on {data.dataset}: {num_classes} classes, {image_size}x{image_size} px")
    if branched:
        widths = f"ws={network.stem_width:g}, wb={network.branch_width:g}, wg={network.gater_width:g}"
        print(f"nb={network.num_branches}, K={network.top_k}, {widths}")
        print(f"\nParameters, thousands\n{table(_parameter_rows(branched, plain))}")
        flop_rows = _flop_rows(branched, plain, network.top_k, network.num_branches)
        print(f"\nMFLOPs for one image\n{table(flop_rows)}")
    else:
        print(f"\n{table(_plain_rows(plain))}")
    if rows := _paper_rows(results, branched, plain, network.top_k):
        print(f"\nBeside the paper; -: it does not say, or it is lost with Table 1\n{table(rows, (0, 1))}")


def _paper_depths(results, system):
    """The depths that the paper has of such a system; of any, where it has none or they are lost."""
    own = {d for name, rows in results.items() if (name == paper.PLAIN) == (system == "plain") for d in rows}
    return sorted(own or {d for rows in results.values() for d in rows})


def _thousands(count):
    return f"{count / 1e3:,.1f}"


def _millions(count):
    return f"{count / 1e6:.1f}"


def _plain_rows(plain):
    rows = [["d", "parameters, thousands", "MFLOPs for one image"]]
    for depth, costs in plain.items():
        rows.append([str(depth), _thousands(costs["parameters"]), _millions(costs["flops"])])
    return rows


def _parameter_rows(branched, plain):
    names = [name for name in next(iter(branched.values()))["parameters"] if name != "heads"]
    rows = [["d", *names, "together", "+ heads in training", "plain"]]
    for depth, costs in branched.items():
        parts = costs["parameters"]
        counts = [parts[name] for name in names]
        counts += [inference_parameters(parts), parts["heads"], plain[depth]["parameters"]]
        rows.append([str(depth), *map(_thousands, counts)])
    return rows


def _flop_rows(branched, plain, top_k, num_branches):
    lambdas = [*range(1, top_k + 1), num_branches]
    names = [*(f"lambda {n}" for n in lambdas[:-1]), f"all {num_branches}"]
    parts = [{"branch": "a branch"}.get(name, name) for name in next(iter(branched.values()))["flops"]]
    rows = [["d", *parts, *names, "plain"]]
    for depth, costs in branched.items():
        parts = costs["flops"]
        counts = [*parts.values(), *(inference_flops(parts, n) for n in lambdas), plain[depth]["flops"]]
        rows.append([str(depth), *map(_millions, counts)])
    return rows


def _paper_rows(results, branched, plain, top_k):
    """A row for each system and depth of the paper that was counted; [] if there is none."""
    rows = []
    for depth in plain:
        for system in (paper.PLAIN, paper.HYDRARES, paper.DYNK_HYDRA):
            row = results.get(system, {}).get(depth)
            if row is None or (system != paper.PLAIN and not branched):
                continue
            active = "-"
            if system == paper.PLAIN:
                mflops, parameters = plain[depth]["flops"] / 1e6, plain[depth]["parameters"] / 1e6
            else:
                active = f"{row.active_branches or top_k:.2f}"
                mflops = inference_flops(branched[depth]["flops"], float(active)) / 1e6
                parameters = branched[depth]["parameters"]
                heads = parameters["heads"] if system == paper.DYNK_HYDRA else 0
                parameters = (inference_parameters(parameters) + heads) / 1e6
            compared = [f"{mflops:.1f}", *_beside(mflops, row.mflops, ".0f")]
            compared += [f"{parameters:.2f}", *_beside(parameters, row.parameters, ".2f")]
            rows.append([str(depth), system, active, *compared])
    header = ["d", "system", "lambda", "MFLOPs", "paper", "ours", "M parameters", "paper", "ours"]
    return [header, *rows] if rows else []


def _beside(ours, papers, form):
    if papers is None:
        return ["-", "-"]
    return [f"{papers:{form}}", f"{round(ours / papers - 1, 3) + 0.0:+.1%}"]  # + 0.0: no -0.0 %


if __name__ == "__main__":
    cli.run(main, Options)
