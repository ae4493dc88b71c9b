"""Server momentum (FedAvgM: Hsu et al. 2019, arXiv:1909.06335)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.rules import OPTIMIZERS, State


@OPTIMIZERS.register("momentum")
@dataclass(frozen=True)
class Momentum:
    """m ← β m + update;  delta = η · m."""

    learning_rate: float = 1.0
    beta: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must lie in [0, 1), got {self.beta}")

    def initial_state(self, num_parameters: int) -> State:
        return {"m": np.zeros(num_parameters, np.float32)}

    def step(self, state: State, update_P: np.ndarray) -> tuple[State, np.ndarray]:
        m = np.float32(self.beta) * state["m"] + update_P
        return {"m": m}, np.float32(self.learning_rate) * m
