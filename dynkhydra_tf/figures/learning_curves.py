"""Loss, accuracies and lambda over the epochs of a run."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dynkhydra_tf.figures import style


def save_learning_curves(rows: list[dict], top_k: int, path: style.Path) -> None:
    """Draws loss and accuracies over the epochs, and lambda where the rows have it: of a Hydra.

    Args:
        rows: the rows of metrics.csv.
        top_k: K, the upper bound of lambda.
        path: the PNG to write.
    """
    branched = "active_branches" in rows[0]
    figure = Figure(figsize=(12 if branched else 8, 4), layout="constrained")
    loss, accuracy, *others = figure.subplots(1, 3 if branched else 2)
    epochs = [row["epoch"] for row in rows]

    def draw(axes, name, label, color):
        for key, alpha, of in ((name, 0.45, "training"), (f"val_{name}", 1.0, "held out")):
            points = [(row["epoch"], row[key]) for row in rows if key in row]  # not all are evaluated
            marker = "o" if len(points) == 1 else None  # one epoch makes no line
            axes.plot(
                *zip(*points, strict=True), color=color, alpha=alpha, marker=marker, label=f"{label}, {of}"
            )

    draw(accuracy, "top1", "top-1", "tab:blue")
    if branched:
        draw(loss, "ensemble_loss", "ensemble $L_E$", "tab:blue")
        draw(loss, "gater_loss", "gater $L_G$", "tab:orange")
        draw(accuracy, "gater_accuracy", "gater", "tab:orange")
        (active,) = others
        draw(active, "active_branches", r"$\lambda$", "tab:green")
        active.set(title=rf"Branches per image, $\lambda$ (at most K = {top_k})")
    else:
        # The total has further losses in it where the network learned from a teacher.
        alone = "cross_entropy_loss" if "cross_entropy_loss" in rows[-1] else "loss"
        draw(loss, alone, "cross-entropy", "tab:blue")
    loss.set(title="Loss (nats)")
    _shrink_a_peak(loss)
    accuracy.set(title="Accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (loss, accuracy, *others):
        axes.set_xlabel("epoch")
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        # Below, where it hides nothing.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, fontsize=8, frameon=False)
    style.save(figure, path)


def _shrink_a_peak(axes):
    """Makes the vertical axis logarithmic where a few values would press all others to the bottom."""
    values = np.concatenate([line.get_ydata() for line in axes.get_lines()]).astype(float)
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > 10 * np.median(values):
        axes.set_yscale("log")
        style.plain_log_axis(axes.yaxis)
