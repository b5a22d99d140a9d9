"""The time of an image by each way to serve it."""

from matplotlib.figure import Figure

from dynkhydra_tf.figures import style


def save_inference_times(rows: list[dict], path: style.Path) -> None:
    """Draws the time of one image by each way to serve it, a panel for each batch size, at one thread count.

    Args:
        rows: dicts of threads, batch_size, subjects ({name: {"ms", "low", "high"}}), one for each
            batch size, from `benchmark.inference.compare`.
        path: the PNG to write.
    """
    names = list(rows[0]["subjects"])
    colors = {"hydra": "tab:green", "limit": "silver"}
    figure = Figure(figsize=(4 + 3 * len(rows), 1.2 + 0.3 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(rows), sharey=True, squeeze=False)[0]
    for axes, row in zip(panels, rows, strict=True):
        for place, name in enumerate(names):
            ms, low, high = (row["subjects"][name][key] / row["batch_size"] for key in ("ms", "low", "high"))
            color = colors.get(name.split(",")[0], "tab:blue")
            axes.barh(place, ms, color=color, xerr=[[max(0, ms - low)], [max(0, high - ms)]], ecolor="gray")
            axes.annotate(
                f"{ms:.2f}", (high, place), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
        threads = "one thread" if row["threads"] == 1 else f"{row['threads']} threads"
        axes.set(title=f"batch {row['batch_size']}, {threads}", xlabel="ms per image")
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.margins(x=0.16)
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
    panels[0].set_yticks(range(len(names)), names, fontsize=9)
    style.save(figure, path)
