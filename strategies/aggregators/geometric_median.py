"""The geometric median by smoothed Weiszfeld steps, RFA (Pillutla, Kakade and Harchaoui 2022, arXiv:1912.13445)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from strategies.rules import AGGREGATORS, State, require_count, require_number, require_users
from strategies.weiszfeld import weiszfeld


@AGGREGATORS.register("geometric-median")
@dataclass(frozen=True)
class GeometricMedian:
    """argmin_z Σ weights_K ||x_k - z||, by ``num_steps`` steps z <- Σ w x / Σ w, w_k = weight_k / max(smoothing,
    ||x_k - z||), from z = 0.  O(num_steps·K·P).

    Stopped early it depends on where it starts, so it does not move along with the updates; 3 steps are the paper's.
    """

    num_steps: int = 3
    smoothing: float = 1e-6

    source = "Pillutla et al. 2022, arXiv:1912.13445"
    cost = "steps·K·P"
    sensitivity = None
    breakdown = 0.5  # of the users' weight
    honours_weights = True

    def __post_init__(self) -> None:
        require_count("num_steps", self.num_steps, least=1)
        require_number("smoothing", self.smoothing)

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        return self._solve(updates_KP, weights_K)[0]

    def row_weights(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        return self._solve(updates_KP, weights_K)[1]

    def _solve(self, updates_KP: torch.Tensor, weights_K: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        require_users(self, updates_KP)
        return weiszfeld(updates_KP, weights_K, self.num_steps, self.smoothing)
