"""Bandwagon profiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, OWN, POPULARITY, Clicks
from client.attacks.profiles import drawn, mask_of, most_popular, profiles, require_share


@ATTACKS.register("bandwagon")
@dataclass(frozen=True)
class Bandwagon:
    """Clicks the targets among the most popular items, which every profile shares, and even fillers, half and half."""

    share: float = 0.25
    popular: float = 0.02
    kind = "clicks"
    goal = "promote"
    knows = frozenset({OWN, POPULARITY})
    source = "Burke et al. 2005, Segment-based injection attacks, Mobasher et al. 2007"

    def __post_init__(self) -> None:
        require_share(self.share)

    def histories(self, clicks: Clicks) -> Mapping[int, np.ndarray]:
        top = mask_of(most_popular(clicks.popularity_I, self.popular), clicks.num_items)
        top[clicks.targets_T] = 0
        even_I = np.full(clicks.num_items, 1 / clicks.num_items)
        return profiles(clicks, drawn(clicks, top / max(top.sum(), 1) + even_I), self.share)
