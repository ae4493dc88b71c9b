"""Min-max."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS
from client.attacks.hidden import Hidden


@ATTACKS.register("min-max")
@dataclass(frozen=True)
class MinMax(Hidden):
    """All send mean + gamma · p, gamma as large as no honest row is further from it than two honest rows are apart."""

    @staticmethod
    def hides(distances_KK: np.ndarray) -> Callable[[np.ndarray], bool]:
        """max_k |m - g_k|^2 <= max_kj |g_k - g_j|^2."""
        bound = distances_KK.max()
        return lambda to_K: to_K.max() <= bound
