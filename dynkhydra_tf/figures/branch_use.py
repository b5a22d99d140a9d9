"""The use and the accuracy of each branch."""

import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dynkhydra_tf.figures import style


def save_branch_use(results, clusters, path):
    """Draws the use and the accuracy of each branch, beside the classes of its partition.

    Args:
        results: dict, from `Evaluation.at`.
        clusters: list of N lists of class names.
        path: the PNG to write.
    """
    # 1,000 classes do not fit.
    wrapped = [
        textwrap.wrap(name, 64, max_lines=3, placeholder=" ...") for name in style.cluster_names(clusters)
    ]
    names = ["\n".join(map(style.plain_text, name_lines)) for name_lines in wrapped]
    lines = [name.count("\n") + 1 for name in names]
    # A bar's height follows its label's.
    heights = 0.17 * np.array(lines) + 0.14
    places = np.cumsum(heights) - heights / 2
    figure = Figure(figsize=(11, 1.2 + heights.sum()), layout="constrained")
    use, accuracy = figure.subplots(1, 2, sharey=True)
    bars = 0.24
    use.barh(places, results["branch_use"], height=bars, color="tab:green")
    use.axvline(
        results["active_branches"] / len(clusters), color="gray", linestyle=":", label=r"even: $\lambda$ / nb"
    )
    use.set(title="Share of the images that use the branch")
    # Room for the legend below the last bar.
    use.set_ylim(heights.sum() + 0.1, 0)
    use.legend(fontsize=8)
    accuracy.barh(
        places, [value or 0 for value in results["cluster_accuracy"]], height=bars, color="tab:blue"
    )
    accuracy.axvline(results["top1"], color="gray", linestyle=":", label="all images")
    accuracy.set(title="Top-1 on the branch's own classes", xlim=(0, 1))
    accuracy.legend(fontsize=8)
    use.set_yticks(places, names, fontsize=8)
    for axes in (use, accuracy):
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
    style.save(figure, path)
