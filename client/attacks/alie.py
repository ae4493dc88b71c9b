"""A little is enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

from client.attacks.contract import ATTACKS, BENIGN, COLLUDERS, OWN, RIVALS, View
from client.attacks.vectors import alike, mean, std


@ATTACKS.register("alie")
@dataclass(frozen=True)
class Alie:
    """All send mean - z · std by coordinate, z so small that enough honest rows lie beyond: m = mu - z sigma.

    z = Phi^-1((K - M - s) / (K - M)), s = floor(K / 2 + 1) - M, unless given; at least ``least``, as the formula gives
    0 or less for M near K / 2 or below a few users. mu and sigma come from the colluders' own honest rows, or, where
    ``omniscient``, from all honest ones.
    """

    z: float = 0.0
    least: float = 0.3
    omniscient: bool = True
    kind = "updates"
    goal = "untargeted"
    source = "Baruch et al. 2019, arXiv:1902.06156"

    @property
    def knows(self) -> frozenset[str]:
        return frozenset({OWN, COLLUDERS, RIVALS, *({BENIGN} if self.omniscient else ())})

    def rows(self, view: View) -> np.ndarray:
        count, reference_KP = len(view.own_MP), view.reference(self.omniscient)
        z = self.z or max(z_max(view.num_users, count), self.least)
        return alike(mean(reference_KP) - z * std(reference_KP), count)


def z_max(num_users: int, num_malicious: int) -> float:
    """Of the paper: the deviation at which s honest users still lie further out than the colluders."""
    honest = num_users - num_malicious
    supporters = num_users // 2 + 1 - num_malicious
    share = (honest - supporters) / honest if honest > 0 else 0.5
    return float(norm.ppf(min(max(share, 1e-6), 1 - 1e-6)))
