"""Accuracy and compute at each threshold."""

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dynkhydra_tf.figures import style
from dynkhydra_tf.figures.labels import label_points


def save_tau_curve(tau_rows: list[dict], tau: float, path: style.Path) -> None:
    """Draws lambda over tau, and accuracy over FLOPs.

    Args:
        tau_rows: from `Evaluation.tau_table`.
        tau: the model's own threshold, marked.
        path: the PNG to write.
    """
    figure = Figure(figsize=(10, 4), layout="constrained")
    over_tau, over_flops = figure.subplots(1, 2)
    taus, top1 = [row["tau"] for row in tau_rows], [row["top1"] for row in tau_rows]
    active = [row["active_branches"] for row in tau_rows]
    mflops = [row["flops"] / 1e6 for row in tau_rows]
    own = taus.index(tau)
    over_tau.plot(taus, active, "o-", color="tab:green")
    (marked,) = over_tau.plot(
        taus[own], active[own], "o", color="black", label=rf"the model's $\tau$, {tau:g}"
    )
    over_tau.set(title=r"Branches per image, $\lambda$", xlabel=r"$\tau$")
    over_flops.plot(mflops, top1, "o-", color="tab:blue")
    over_flops.plot(mflops[own], top1[own], "o", color="black")
    over_flops.set(title=r"Top-1 over compute, at each $\tau$", xlabel="MFLOPs per image")
    over_flops.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (over_tau, over_flops):
        axes.margins(0.1)
        axes.grid(alpha=0.3)
    figure.legend(handles=[marked], loc="outside lower center", fontsize=8, frameon=False)
    label_points(over_flops, [[(x, y, f"{t:g}") for x, y, t in zip(mflops, top1, taus, strict=True)]])
    style.save(figure, path)
