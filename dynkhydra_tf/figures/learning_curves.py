"""Loss, accuracies and lambda over the epochs of a run."""

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from dynkhydra_tf.figures import style


def save_learning_curves(rows, top_k, path):
    """Draws loss and accuracies over the epochs, and lambda where the rows have it: of a Hydra.

    Args:
        rows: list of dicts, the rows of metrics.csv.
        top_k: int, K, drawn as the upper bound of lambda.
        path: the PNG to write.
    """
    branched = "active_branches" in rows[0]
    figure = Figure(figsize=(12 if branched else 8, 3.6), layout="constrained")
    loss, accuracy, *others = figure.subplots(1, 3 if branched else 2)
    epochs = [row["epoch"] for row in rows]

    def draw(axes, name, label, color):
        axes.plot(epochs, [row[name] for row in rows], color=color, alpha=0.45, label=f"{label}, training")
        axes.plot(epochs, [row[f"val_{name}"] for row in rows], color=color, label=f"{label}, held out")

    draw(accuracy, "top1", "top-1", "tab:blue")
    if branched:
        draw(loss, "ensemble_loss", "ensemble $L_E$", "tab:blue")
        draw(loss, "gater_loss", "gater $L_G$", "tab:orange")
        draw(accuracy, "gater_accuracy", "gater", "tab:orange")
        (active,) = others
        draw(active, "active_branches", r"$\lambda$", "tab:green")
        active.axhline(top_k, color="gray", linestyle=":", label=f"K = {top_k}")
        active.set(title=r"Branches per image, $\lambda$", ylim=(0, top_k + 0.4))
    else:
        draw(loss, "loss", "cross-entropy", "tab:blue")
    loss.set(title="Loss (nats)", ylim=(0, None))
    accuracy.set(title="Accuracy", ylim=(0, 1))
    accuracy.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (loss, accuracy, *others):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    style.save(figure, path)
