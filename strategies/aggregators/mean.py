"""The plain mean of users' updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strategies.rules import AGGREGATORS, State


@AGGREGATORS.register("mean")
@dataclass(frozen=True)
class Mean:
    """update_P = (1/K) Σ updates_KP, whatever the weights.  O(K·P)."""

    sensitivity = 2.0  # ||u - u'|| <= 2C, divided by K
    breakdown = 0.0

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        return updates_KP.mean(dim=0)
