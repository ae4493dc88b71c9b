"""The coordinate-wise median (Yin et al. 2018, arXiv:1803.01498)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strategies.columns import column_median
from strategies.rules import AGGREGATORS, State, require_users


@AGGREGATORS.register("median")
@dataclass(frozen=True)
class Median:
    """The middle value of every coordinate, the mean of the middle two where K is even.  O(K·P), about 15 passes.

    Holds against fewer than half of the users. Where most users leave a coordinate at 0, as in sparse uploads, so does
    the median.
    """

    source = "Yin et al. 2018, arXiv:1803.01498"
    cost = "K·P, no sort"
    sensitivity = None
    breakdown = 0.5
    translation = scale = tight = True

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        require_users(self, updates_KP)
        return column_median(updates_KP)
