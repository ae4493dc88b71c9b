"""The weighted mean of users' updates, FedAvg's rule (McMahan et al. 2017, arXiv:1602.05629)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strategies.rules import AGGREGATORS, State, require_users


@AGGREGATORS.register("weighted-mean")
@dataclass(frozen=True)
class WeightedMean:
    """update_P = Σ weights_K updates_KP, with weights that sum to 1.  O(K·P)."""

    source = "McMahan et al. 2017, arXiv:1602.05629"
    cost = "K·P"
    sensitivity = None  # depends on the clients' weights; central privacy takes it with equal ones only
    breakdown = 0.0
    translation = scale = tight = honours_weights = True

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        require_users(self, updates_KP)
        return weights_K.to(updates_KP.dtype) @ updates_KP

    def own_rows(self, updates_KP: torch.Tensor) -> torch.Tensor:
        """With equal weights, which central privacy forces, it is the plain mean."""
        return updates_KP

    def row_weights(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        return weights_K
