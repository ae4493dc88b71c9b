"""FedYogi (Reddi et al. 2021, arXiv:2003.00295, Algorithm 2; Yogi: Zaheer et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.rules import OPTIMIZERS, State


@OPTIMIZERS.register("yogi")
@dataclass(frozen=True)
class Yogi:
    """m ← β₁ m + (1 - β₁) u;  v ← v - (1 - β₂) u² sign(v - u²);  delta = η · m / (√v + τ).

    Starts from m = 0, v = τ².
    """

    learning_rate: float = 0.02
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3

    def __post_init__(self) -> None:
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.tau > 0):
            raise ValueError("beta1 and beta2 must lie in [0, 1), tau above 0")

    def initial_state(self, num_parameters: int) -> State:
        return {
            "m": np.zeros(num_parameters, np.float32),
            "v": np.full(num_parameters, self.tau**2, np.float32),
        }

    def step(self, state: State, update_P: np.ndarray) -> tuple[State, np.ndarray]:
        squared = np.square(update_P)
        m = np.float32(self.beta1) * state["m"] + np.float32(1 - self.beta1) * update_P
        v = state["v"] - np.float32(1 - self.beta2) * squared * np.sign(state["v"] - squared)
        return {"m": m, "v": v}, np.float32(self.learning_rate) * m / (np.sqrt(v) + np.float32(self.tau))
