"""Whether what a model is asked looks like what it was validated on, told by what it answers.

Three histograms say what a conditional model does: the highest gate probability, the branches that ran, the
classes. They are counted on validation images when it is exported, and over the last answers when it is
served. How far two lie apart is their Jensen-Shannon divergence with logarithms to base 2,

    JSD(P, Q) = H((P + Q) / 2) - (H(P) + H(Q)) / 2,    H(P) = -sum p log2 p,

0 where they are equal, 1 where they share nothing; no bin needs a count. Of n answers like the validation
images themselves it is about (bins - 1) / (8 n ln 2): a few thousandths in a window of a thousand.

N branches (nb). It needs no more than the standard library.
"""

import collections
import json
import math
import os
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, NamedTuple

from dynkhydra_tf.errors import UserError

BINS = 20  # of the gate's probability, 0..1


class Seen(NamedTuple):
    """What an answer says of one image.

    Attributes:
        gate: the highest gate probability, 0..1.
        active_branches: how many branches ran.
        label: the class.
    """

    gate: float
    active_branches: int
    label: str

    def bins(self) -> tuple[int, int, str]:
        """The bin in each histogram, in the order of `Histograms`."""
        return min(int(self.gate * BINS), BINS - 1), self.active_branches, self.label


class Histograms(NamedTuple):
    """How often each bin was seen.

    Attributes:
        gate: by place of the bin, 0..BINS-1.
        active_branches: by their number.
        classes: by label.
    """

    gate: Mapping[int, int]
    active_branches: Mapping[int, int]
    classes: Mapping[str, int]

    @classmethod
    def of(cls, seen: Iterable[Seen], labels: Iterable[str] = ()) -> "Histograms":
        """Counts; `labels`: of the classes that are there even if nobody saw them."""
        counters: tuple = (
            collections.Counter(),
            collections.Counter(),
            collections.Counter(dict.fromkeys(labels, 0)),
        )
        for each in seen:
            for counter, place in zip(counters, each.bins(), strict=True):
                counter[place] += 1
        return cls(*counters)

    def to_json(self) -> dict[str, dict[str, int]]:
        """As a value that `json` can write."""
        return {
            name: {str(place): count for place, count in sorted(counts.items())}
            for name, counts in self._asdict().items()
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Mapping[str, int]]) -> "Histograms":
        """What `to_json` gave.

        Raises:
            KeyError, TypeError, ValueError, AttributeError: it is something else.
        """
        gate, branches = (
            {int(place): int(count) for place, count in record[name].items()}
            for name in ("gate", "active_branches")
        )
        classes = {str(label): int(count) for label, count in record["classes"].items()}
        if not all(sum(counts.values()) > 0 for counts in (gate, branches, classes)):
            raise ValueError("an empty histogram")
        return cls(gate, branches, classes)


def divergence(one: Mapping[Hashable, int], other: Mapping[Hashable, int]) -> float:
    """Returns the Jensen-Shannon divergence of two histograms, in 0..1; see the top."""
    ps, qs = (
        {place: count / sum(counts.values()) for place, count in counts.items()} for counts in (one, other)
    )
    middle = {place: (ps.get(place, 0) + qs.get(place, 0)) / 2 for place in {*ps, *qs}}
    return max(0.0, _entropy(middle) - (_entropy(ps) + _entropy(qs)) / 2)


def _entropy(shares):
    return -sum(share * math.log2(share) for share in shares.values() if share)


class Window:
    """The last answers beside the validation images.

    Args:
        validation: their histograms.
        size: answers that count.
    """

    def __init__(self, validation: Histograms, size: int) -> None:
        self.validation = validation
        self.size = size
        self._last: collections.deque = collections.deque()
        self._counts: list[collections.Counter] = [collections.Counter() for _ in Histograms._fields]

    def __len__(self) -> int:
        """How many answers there are, at most `size`."""
        return len(self._last)

    def add(self, seen: Seen) -> None:
        """Takes an answer in, and lets go of the oldest."""
        bins = seen.bins()
        self._last.append(bins)
        for counter, place in zip(self._counts, bins, strict=True):
            counter[place] += 1
        if len(self._last) > self.size:
            for counter, place in zip(self._counts, self._last.popleft(), strict=True):
                counter[place] -= 1

    def distances(self) -> dict[str, float]:
        """Returns the divergence of each histogram, by its name; of no answers nothing."""
        if not self._last:
            return {}
        names = Histograms._fields
        return {
            name: divergence(counts, getattr(self.validation, name))
            for name, counts in zip(names, self._counts, strict=True)
        }


def load_validation(path: str | os.PathLike) -> Histograms:
    """Reads the histograms of an export's reference.json.

    Raises:
        UserError: it cannot be read, or has none.
    """
    try:
        with open(path, encoding="utf-8") as file:
            record: Any = json.load(file)
        return Histograms.from_json(record["validation"])
    except OSError as error:
        raise UserError(f"The reference file {path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} has no histograms of validation images: export the run again where its data are; a "
            "plain network has none"
        ) from error
