"""Label flip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, OWN, POPULARITY, Clicks


@ATTACKS.register("label-flip")
@dataclass(frozen=True)
class LabelFlip:
    """Exchanges every clicked item for its opposite in popularity: rank r becomes rank I - 1 - r.

    The y -> C - 1 - y of classifiers, with items in the order of a public chart (ties: the smaller id first), so that
    the least wanted items are trained on as if they were the most wanted.
    """

    kind = "clicks"
    goal = "untargeted"
    knows = frozenset({OWN, POPULARITY})
    source = "Tolpegin et al. 2020, arXiv:2007.08432"

    def histories(self, clicks: Clicks) -> Mapping[int, np.ndarray]:
        order_I = np.argsort(-clicks.popularity_I, kind="stable")
        opposite_I = np.empty(clicks.num_items, np.int64)
        opposite_I[order_I] = order_I[::-1]
        return {user: opposite_I[items] for user, items in clicks.histories.items()}
