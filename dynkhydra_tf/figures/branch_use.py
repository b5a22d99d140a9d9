"""The use and the accuracy of each branch."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dynkhydra_tf.figures import style

BAR = 0.2  # inches


def save_branch_use(results: dict, clusters: list[list[str]], path: style.Path) -> None:
    """Draws the use and the accuracy of each branch, beside the classes of its partition.

    Args:
        results: from `Evaluation.at`.
        clusters: N lists of class names.
        path: the PNG to write.
    """
    # 1,000 classes do not fit.
    names = [style.wrapped(name, columns=56, lines=3) for name in style.cluster_names(clusters)]
    # A bar's row is as high as its label.
    heights = 0.155 * np.array([name.count("\n") + 1 for name in names]) + 0.16
    places = np.cumsum(heights) - heights / 2
    figure = Figure(figsize=(11, 1.1 + heights.sum()), layout="constrained")
    use, accuracy = figure.subplots(1, 2, sharey=True)
    even = results["active_branches"] / len(clusters)
    _draw_bars(use, places, results["branch_use"], "tab:green", even)
    use.set(title="Share of the images that use the branch")
    use.set_xlabel(rf"dotted: all branches alike, $\lambda$ / nb = {even:.1%}")
    _draw_bars(accuracy, places, results["cluster_accuracy"], "tab:blue", results["top1"])
    accuracy.set(title="Top-1 on the branch's own classes")
    accuracy.set_xlabel(f"dotted: all images, {results['top1']:.1%}")
    use.set_ylim(heights.sum(), 0)
    use.set_yticks(places, names, fontsize=8)
    style.save(figure, path)


def _draw_bars(axes, places, shares, color, mark):
    """Draws bars with their shares in numbers, None for none, and a dotted line at `mark`."""
    lengths = [share or 0 for share in shares]
    axes.barh(places, lengths, height=BAR, color=color)
    axes.axvline(mark, color="black", linestyle=":", linewidth=1)
    axes.set_xlim(0, 1.25 * max(mark, *lengths, 1e-6))  # room for the numbers
    for place, share in zip(places, shares, strict=True):
        number = "no images" if share is None else f"{share:.1%}"
        right = axes.get_yaxis_transform()  # across by the axes, down by the data
        axes.text(0.985, place, number, transform=right, ha="right", va="center", fontsize=8, color="dimgray")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
