"""FedRecAttack-style promotion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, COLLUDERS, OWN, PUBLIC, View
from client.attacks.laboratory import keep_rows, promotion_loss
from client.attacks.vectors import alike, of_norm


@ATTACKS.register("fed-rec-attack")
@dataclass(frozen=True)
class FedRecAttack:
    """-gradient of the promotion loss over the users whose clicks are public, in at most ``max_rows`` items' rows.

    The paper guesses user vectors from public clicks; here the base model computes them from those clicks. ``share`` is
    the part of the honest users that is public (its xi). The row is cut to the rows of the targets and of the items
    with the largest rows (its kappa), and sent at the clipping norm.
    """

    share: float = 0.05
    max_rows: int = 60
    top: int = 10
    kind = "updates"
    goal = "promote"
    knows = frozenset({OWN, COLLUDERS, PUBLIC})
    source = "Rong et al. 2022, FedRecAttack, ICDE, arXiv:2204.01499"

    def rows(self, view: View) -> np.ndarray:
        known = view.public_ids[: max(round(self.share * len(view.public_ids)), 1)]
        graphs, seen_UI = view.model.present(known)
        gradient_P = view.model.gradient(
            view.patch_P,
            lambda patch: promotion_loss(view.model.scores(graphs, patch), seen_UI, view.targets_T, self.top),
        )
        row_P = keep_rows(view.spec, -gradient_P, self.max_rows, view.targets_T)
        return alike(of_norm(row_P, view.clipping_norm), len(view.own_MP))
