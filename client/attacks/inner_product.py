"""Inner-product manipulation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, BENIGN, COLLUDERS, OWN, View
from client.attacks.vectors import alike, mean


@ATTACKS.register("ipm")
@dataclass(frozen=True)
class InnerProduct:
    """All send -epsilon · mean: the aggregate's inner product with the true one turns negative.

    Small epsilon hides among the honest rows from rules by distance; large epsilon turns a mean over.
    """

    epsilon: float = 10.0
    omniscient: bool = True
    kind = "updates"
    goal = "untargeted"
    source = "Xie et al. 2019, arXiv:1903.03936"

    @property
    def knows(self) -> frozenset[str]:
        return frozenset({OWN, COLLUDERS, *({BENIGN} if self.omniscient else ())})

    def rows(self, view: View) -> np.ndarray:
        return alike(-self.epsilon * mean(view.reference(self.omniscient)), len(view.own_MP))
