"""Loss and accuracy on the way from one branch to another (Fig. 5)."""

from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from dynkhydra_tf.figures import style


def save_interpolation(result: Any, clusters: list[list[str]], path: style.Path, title: str = "") -> None:
    """Draws loss and top-1 over alpha, a row of panels for each reading.

    Args:
        result: `analysis.interpolation.Interpolation`.
        clusters: nb lists of class names.
        path: the PNG to write.
        title: whose branches they are.
    """
    figure = Figure(figsize=(11, 1.3 + 3.5 * len(result.readings)), layout="constrained")
    panels = figure.subplots(len(result.readings), 2, sharex=True, squeeze=False)
    colors = ("black", "tab:blue", "tab:orange")
    a, b = result.branches
    for r, reading in enumerate(result.readings):
        for axes, values in zip(panels[r], (result.loss[r], result.top1[r]), strict=True):
            for s, dashes in enumerate(("-", "--")):
                for on, color in enumerate(colors):
                    width = (2.2 if on == 0 else 1.4) * (1 if s == 0 else 0.7)
                    axes.plot(result.alphas, values[s, :, on], dashes, color=color, linewidth=width)
            axes.grid(alpha=0.3)
        how = "its head, interpolated too" if reading == "own head" else "the ensemble's combiner"
        panels[r, 0].set(title=f"Loss (nats), read by {how}")
        panels[r, 1].set(title=f"Top-1, read by {how}")
        panels[r, 1].yaxis.set_major_formatter(PercentFormatter(1))
    if title:
        figure.suptitle(style.plain_text(title), fontsize=10)
    for axes in panels[-1]:
        axes.set_xlabel(rf"$\alpha$: 0 is branch {a}, 1 is branch {b}")
        axes.set_xlim(0, 1)
    lines = [
        Line2D([], [], color=color, linewidth=2.2 if color == "black" else 1.4, label=label)
        for color, label in zip(
            colors, ["images of both partitions", _label(a, clusters), _label(b, clusters)], strict=True
        )
    ]
    lines += [
        Line2D([], [], color="gray", linestyle="-", label="normalisation re-estimated"),
        Line2D([], [], color="gray", linestyle="--", label="normalisation interpolated"),
    ]
    figure.legend(handles=lines, loc="outside lower center", ncols=2, fontsize=9)
    style.save(figure, path)


def _label(branch, clusters):
    return style.short(f"of branch {branch}'s: {', '.join(clusters[branch])}", 66)
