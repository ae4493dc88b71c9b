"""Plain server steps: FedAvg at learning rate 1."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from strategies.rules import OPTIMIZERS, State


@OPTIMIZERS.register("sgd")
@dataclass(frozen=True)
class Sgd:
    """delta = η · update."""

    learning_rate: float = 1.0

    def initial_state(self, num_parameters: int) -> State:
        return {}

    def step(self, state: State, update_P: np.ndarray) -> tuple[State, np.ndarray]:
        return state, np.float32(self.learning_rate) * update_P
