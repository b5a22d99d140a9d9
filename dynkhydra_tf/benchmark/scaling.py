"""What many machines would give, on paper: which share of a training step would be computing.

    python -m dynkhydra_tf.benchmark.scaling --ms_per_image=6.2 --megabytes=18 --batch_sizes=128,1024

Weak scaling by a ring of n workers, each with its own part of the batch, nothing overlapped:

    step = computing + messages
    computing = images x ms_per_image / cores
    messages = 2 (n - 1) / n x bytes x seconds a byte + 2 (n - 1) x latency

A byte takes what the line needs for it or, where that is longer, what the processors need: TensorFlow copies
a message several times on its way, and `benchmark.workers` measures that.
"""

import dataclasses

from dynkhydra_tf import cli
from dynkhydra_tf.fields import Checked, setting
from dynkhydra_tf.tables import markdown_table

MOST_WORKERS = 2**20


@dataclasses.dataclass(frozen=True)
class Options(Checked):
    """The flags of this command."""

    ms_per_image: float = setting(6.2, "Processor time of a training image, on one core.", above=0)
    cores: int = setting(16, "Cores of a machine, taken to be at full use.", least=1)
    batch_sizes: tuple[int, ...] = setting((128, 1024), "Images of a worker in a step.", least=1)
    megabytes: float = setting(18.0, "Gradients of a step.", above=0)
    workers: tuple[int, ...] = setting((8, 64, 512), "How many machines.", least=2)
    gigabits: tuple[float, ...] = setting((10.0, 100.0), "Bandwidth of a line, in Gbit/s.", above=0)
    latency_us: float = setting(50.0, "Of a message, in microseconds.", least=0)
    ns_per_byte: float = setting(
        0.0, "What the processors take for a byte that is sent and one that is received.", least=0
    )


def message_ms(workers: int, megabytes: float, ns_per_byte: float, latency_us: float) -> float:
    """Returns how long a ring of workers takes to add up so many megabytes, in milliseconds."""
    return 2 * (workers - 1) / workers * megabytes * ns_per_byte + 2 * (workers - 1) * latency_us / 1e3


def computing_share(computing_ms: float, ring_ms: float) -> float:
    """Returns which share of a step is computing: the images per second, over those of as many alone."""
    return computing_ms / (computing_ms + ring_ms)


def main(options: Options) -> None:
    """Prints the table."""
    counts = " / ".join(map(str, options.workers))
    header = ["images a worker and step", "computing, ms"]
    header += [f"{each:g} Gbit/s: % at {counts}" for each in options.gigabits]
    rows = [[*header, *[f"{each:g} Gbit/s: half from" for each in options.gigabits]]]
    for size in options.batch_sizes:
        computing = size * options.ms_per_image / options.cores
        shares, ends = [], []
        for gigabits in options.gigabits:
            cost = options.megabytes, max(8 / gigabits, options.ns_per_byte), options.latency_us
            found = [computing_share(computing, message_ms(n, *cost)) for n in options.workers]
            shares.append(" / ".join(f"{100 * share:.0f}" for share in found))
            ends.append(_half_from(computing, cost))
        rows.append([str(size), f"{computing:.1f}", *shares, *ends])
    print(markdown_table(rows))


def _half_from(computing, cost):
    """From how many workers on less than half of a step is computing."""
    workers = 2
    while message_ms(workers, *cost) <= computing:
        if workers == MOST_WORKERS:
            return "-"
        workers += 1
    return f"{workers} workers"


if __name__ == "__main__":
    cli.run(main, Options)
