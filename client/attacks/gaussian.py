"""Gaussian noise in place of an update."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, OWN, View
from client.attacks.vectors import of_norm


@ATTACKS.register("gaussian")
@dataclass(frozen=True)
class Gaussian:
    """Sends noise: N(0, std²) in every coordinate, or, for std = 0, noise of exactly the clipping norm."""

    std: float = 0.0
    kind = "updates"
    goal = "untargeted"
    knows = frozenset({OWN})
    source = "Blanchard et al. 2017, arXiv:1703.02757"

    def rows(self, view: View) -> np.ndarray:
        noise_MP = view.generator.standard_normal(view.own_MP.shape)
        if self.std:
            return (self.std * noise_MP).astype(np.float32)
        return np.stack([of_norm(noise_P, view.clipping_norm) for noise_P in noise_MP]).astype(np.float32)
