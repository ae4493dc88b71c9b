"""Majority vote on signs (Bernstein et al. 2019, arXiv:1810.05291)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strategies.rules import AGGREGATORS, State, require_number, require_users

_COLUMNS = 4096


@AGGREGATORS.register("sign-majority")
@dataclass(frozen=True)
class SignMajority:
    """step_size · sign(Σ_k sign(x_k)), in every coordinate.  O(K·P).

    A user who leaves a coordinate at 0 has no vote on it. ``step_size`` None: the median over users of their mean
    absolute value, so that the result is as long as a usual update. Always bounded; its direction holds where in every
    coordinate honest users of one opinion outnumber the rest.
    """

    step_size: float | None = None

    source = "Bernstein et al. 2019, arXiv:1810.05291"
    cost = "K·P"
    sensitivity = None
    breakdown = 0.5

    def __post_init__(self) -> None:
        if self.step_size is not None:
            require_number("step_size", self.step_size)

    @property
    def scale(self) -> bool:
        return self.step_size is None

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        k = require_users(self, updates_KP)
        votes_P, sizes_K = torch.empty_like(updates_KP[0]), torch.zeros(k, dtype=torch.float64)
        for start in range(0, len(votes_P), _COLUMNS):
            block_KB = updates_KP[:, start : start + _COLUMNS]
            votes_P[start : start + _COLUMNS] = block_KB.sign().sum(dim=0).sign()
            sizes_K += block_KB.abs().sum(dim=1)
        usual = float(sizes_K.quantile(0.5)) / max(len(votes_P), 1)
        return votes_P * (usual if self.step_size is None else self.step_size)
