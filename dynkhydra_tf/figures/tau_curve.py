"""Accuracy and compute at each threshold."""

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from dynkhydra_tf.figures import style


def save_tau_curve(tau_rows, tau, path):
    """Draws accuracy and FLOPs over tau, and accuracy over FLOPs.

    Args:
        tau_rows: list of dicts, from `Evaluation.tau_table`.
        tau: the model's own threshold, marked.
        path: the PNG to write.
    """
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    over_tau, over_flops = figure.subplots(1, 2)
    taus, top1 = [row["tau"] for row in tau_rows], [row["top1"] for row in tau_rows]
    mflops = [row["flops"] / 1e6 for row in tau_rows]
    own = next(i for i, row in enumerate(tau_rows) if row["tau"] == tau)
    over_tau.plot(taus, [row["active_branches"] for row in tau_rows], "o-", color="tab:green")
    over_tau.plot(taus[own], tau_rows[own]["active_branches"], "o", color="black", label="the model's tau")
    over_tau.set(title=r"Branches per image, $\lambda$", xlabel=r"$\tau$", ylim=(0, None))
    over_flops.plot(mflops, top1, "o-", color="tab:blue")
    over_flops.plot(mflops[own], top1[own], "o", color="black", label="the model's tau")
    for row, x in zip(tau_rows, mflops, strict=True):
        over_flops.annotate(
            f"{row['tau']:g}", (x, row["top1"]), (4, 5), textcoords="offset points", fontsize=8
        )
    over_flops.set(title=r"Top-1 over MFLOPs per image (each point: $\tau$)", xlabel="MFLOPs per image")
    over_flops.yaxis.set_major_formatter(PercentFormatter(1))
    over_flops.margins(0.1)
    for axes in (over_tau, over_flops):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    style.save(figure, path)
