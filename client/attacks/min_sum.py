"""Min-sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS
from client.attacks.hidden import Hidden


@ATTACKS.register("min-sum")
@dataclass(frozen=True)
class MinSum(Hidden):
    """All send mean + gamma · p, gamma as large as its squared distances to honest rows sum to no more than theirs."""

    @staticmethod
    def hides(distances_KK: np.ndarray) -> Callable[[np.ndarray], bool]:
        """sum_k |m - g_k|^2 <= max_j sum_k |g_k - g_j|^2."""
        bound = distances_KK.sum(axis=1).max()
        return lambda to_K: to_K.sum() <= bound
