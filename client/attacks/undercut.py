"""Undercut: a promotion by falls."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, COLLUDERS, OWN, View
from client.attacks.laboratory import promotion_loss, scale_rows
from client.attacks.vectors import of_norm, unit


@ATTACKS.register("undercut")
@dataclass(frozen=True)
class Undercut:
    """Pushes down what stands above the targets in the colluders' lists, and leaves the targets as they are.

    -gradient of the promotion loss over the colluders' own clicks without the targets' rows, ``boost`` times as long as
    the colluder's honest update, which it is added to; the sum is sent at the clipping norm. For defences that
    bound how far an item is lifted: a target that stays where it was is lifted by nothing.
    """

    boost: float = 1.0
    top: int = 10
    kind = "updates"
    goal = "promote"
    knows = frozenset({OWN, COLLUDERS})
    source = "fedquilt, against bounds on lift"

    def rows(self, view: View) -> np.ndarray:
        lab = view.model
        graphs, seen_UI = lab.present(view.client_ids_M)
        gradient_P = lab.gradient(
            view.patch_P, lambda patch: promotion_loss(lab.scores(graphs, patch), seen_UI, view.targets_T, self.top)
        )
        others_I = np.ones(seen_UI.shape[1])
        others_I[view.targets_T] = 0
        wish_P = unit(-scale_rows(view.spec, gradient_P, others_I))
        rows = [of_norm(unit(own_P) + self.boost * wish_P, view.clipping_norm) for own_P in view.own_MP]
        return np.stack(rows).astype(np.float32)
