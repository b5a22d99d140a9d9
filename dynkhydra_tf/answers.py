"""What a network says of a photo. M: number of classes, N: number of branches (nb).

It needs no TensorFlow, and numpy only for what is given as arrays.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    import numpy as np


class Answer(NamedTuple):
    """What a network says of a photo, or why it says nothing.

    Attributes:
        path: of the photo, as it was given.
        top: (label, probability) of the best classes, the best first; () where there is a problem.
        branches: the branches that ran, rising ints in 0..N-1; None of a plain network.
        problem: why the photo cannot be read, in a few words; None where it can.
    """

    path: str
    top: tuple[tuple[str, float], ...] = ()
    branches: tuple[int, ...] | None = None
    problem: str | None = None

    @classmethod
    def of(
        cls,
        path: str,
        probabilities: "np.ndarray",
        class_names: Sequence[str],
        top: int,
        selected: "np.ndarray | None" = None,
    ) -> Self:
        """Makes the answer from what a network gives.

        Args:
            path: of the photo.
            probabilities: (M,) floats.
            class_names: M str.
            top: how many classes to name; all where there are fewer.
            selected: (N,) bool, the branches that ran; None for a plain network.
        """
        import numpy as np

        best = np.argsort(-probabilities, kind="stable")[:top]
        named = tuple((class_names[index], float(probabilities[index])) for index in best)
        return cls(path, named, None if selected is None else tuple(np.flatnonzero(selected).tolist()))

    @classmethod
    def served(cls, path: str, row: Mapping[str, Any], top: int) -> Self:
        """Makes the answer from what an export or a server says of one photo.

        Args:
            path: of the photo.
            row: the outputs of `image_bytes` for it, without the batch axis: label, probabilities (M), and
                where there are any gate (N), active_branches, top_labels, top_probabilities, error; texts as
                str or bytes.
            top: how many classes to name, at most; those that the row names.

        Raises:
            KeyError: there is no label, or are no probabilities.
        """
        if problem := _text(row.get("error", "")):
            return cls(path, problem=problem)
        if "top_labels" in row:
            best = zip(row["top_labels"][:top], row["top_probabilities"][:top], strict=True)
        else:
            best = zip([row["label"]], [max(row["probabilities"])], strict=True)
        named = tuple((_text(label), float(probability)) for label, probability in best)
        branches = None
        if "gate" in row:  # those of largest probability ran
            gate = list(row["gate"])
            order = sorted(range(len(gate)), key=lambda branch: -gate[branch])
            branches = tuple(sorted(order[: row["active_branches"]]))
        return cls(path, named, branches)

    @property
    def label(self) -> str | None:
        """The best class; None where there is a problem."""
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        """Of the best class, in 0..1; None where there is a problem."""
        return self.top[0][1] if self.top else None


def _text(value):
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value
