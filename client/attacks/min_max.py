"""Min-max."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, BENIGN, COLLUDERS, OWN, View
from client.attacks.directions import direction
from client.attacks.hidden import furthest_hidden
from client.attacks.vectors import alike


@ATTACKS.register("min-max")
@dataclass(frozen=True)
class MinMax:
    """All send mean + gamma · p, gamma as large as no honest row is further from it than two honest rows are apart.

    p is ``direction``: unit (against the mean), std or sign.
    """

    direction: str = "std"
    omniscient: bool = True
    kind = "updates"
    goal = "untargeted"
    source = "Shejwalkar and Houmansadr 2021, Manipulating the Byzantine, NDSS"

    def __post_init__(self) -> None:
        direction(self.direction)

    @property
    def knows(self) -> frozenset[str]:
        return frozenset({OWN, COLLUDERS, *({BENIGN} if self.omniscient else ())})

    def rows(self, view: View) -> np.ndarray:
        reference_KP = view.reference(self.omniscient)
        return alike(
            furthest_hidden(reference_KP, direction(self.direction)(reference_KP), self.hides), len(view.own_MP)
        )

    @staticmethod
    def hides(distances_KK: np.ndarray) -> Callable[[np.ndarray], bool]:
        """max_k |m - g_k|^2 <= max_kj |g_k - g_j|^2."""
        bound = distances_KK.max()
        return lambda to_K: to_K.max() <= bound
