"""What a network says of a photo; needs no TensorFlow. M: number of classes, N: number of branches (nb)."""

from collections.abc import Sequence
from typing import NamedTuple, Self

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
        probabilities: np.ndarray,
        class_names: Sequence[str],
        top: int,
        selected: np.ndarray | None = None,
    ) -> Self:
        """Makes the answer from what a network gives.

        Args:
            path: of the photo.
            probabilities: (M,) floats.
            class_names: M str.
            top: how many classes to name; all where there are fewer.
            selected: (N,) bool, the branches that ran; None for a plain network.
        """
        best = np.argsort(-probabilities, kind="stable")[:top]
        named = tuple((class_names[index], float(probabilities[index])) for index in best)
        return cls(path, named, None if selected is None else tuple(np.flatnonzero(selected).tolist()))

    @property
    def label(self) -> str | None:
        """The best class; None where there is a problem."""
        return self.top[0][0] if self.top else None

    @property
    def probability(self) -> float | None:
        """Of the best class, in 0..1; None where there is a problem."""
        return self.top[0][1] if self.top else None
