"""Model replacement, alias scaling or boosting."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, COLLUDERS, OWN, RIVALS, View
from client.attacks.vectors import alike, mean


@ATTACKS.register("model-replacement")
@dataclass(frozen=True)
class ModelReplacement:
    """All send K / M · (goal - patch), so that a mean of K users lands on the goal whatever the others send.

    The goal here is the patch against which the colluders' honest mean update g points: patch - reach · g. With a clip
    to C what is left of it is a row of norm C, which is why the clip exists.
    """

    reach: float = 1.0
    kind = "updates"
    goal = "untargeted"
    knows = frozenset({OWN, COLLUDERS, RIVALS})
    source = "Bagdasaryan et al. 2020, arXiv:1807.00459"

    def rows(self, view: View) -> np.ndarray:
        count = len(view.own_MP)
        return alike(-self.reach * view.num_users / count * mean(view.own_MP), count)
