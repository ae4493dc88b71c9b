"""Popular-item obfuscation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, OWN, POPULARITY, Clicks
from client.attacks.profiles import drawn, mask_of, most_popular, profiles, require_share


@ATTACKS.register("average-over-popular")
@dataclass(frozen=True)
class AverageOverPopular:
    """Clicks the targets among fillers drawn evenly from the most popular items: no rare filler stands out."""

    share: float = 0.25
    popular: float = 0.2
    kind = "clicks"
    goal = "promote"
    knows = frozenset({OWN, POPULARITY})
    source = "Hurley, Cheng and Zhang 2009, Statistical attack detection, RecSys"

    def __post_init__(self) -> None:
        require_share(self.share)

    def histories(self, clicks: Clicks) -> Mapping[int, np.ndarray]:
        top = most_popular(clicks.popularity_I, self.popular)
        return profiles(clicks, drawn(clicks, mask_of(top, clicks.num_items)), self.share)
