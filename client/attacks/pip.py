"""PipAttack-style promotion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from client.attacks.contract import ATTACKS, COLLUDERS, OWN, POPULARITY, View
from client.attacks.laboratory import promotion_loss
from client.attacks.profiles import most_popular
from client.attacks.vectors import mean, of_norm, unit


@ATTACKS.register("pip-attack")
@dataclass(frozen=True)
class PipAttack:
    """Makes the target look popular: -gradient of alignment + explicit promotion, beside an honest update.

    Alignment: squared distance between the target's vector (and bias) and the mean of the ``popular`` share of items
    that a public chart names, in place of the paper's popularity classifier. Explicit promotion: the promotion loss on
    the colluders' own subgraphs. Both gradients at equal length are added to each colluder's own update; where
    ``hidden``, rows are no longer than the colluders' mean honest row (its distance constraint), else they have the
    clipping norm.
    """

    popular: float = 0.1
    boost: float = 4.0
    hidden: bool = False
    top: int = 10
    kind = "updates"
    goal = "promote"
    knows = frozenset({OWN, COLLUDERS, POPULARITY})
    source = "Zhang et al. 2022, PipAttack, WSDM, arXiv:2110.10926"

    def rows(self, view: View) -> np.ndarray:
        aligned_P, explicit_P = self._alignment(view), self._explicit(view)
        usual = float(np.linalg.norm(mean(view.own_MP)))
        wish_P = of_norm(unit(aligned_P) + unit(explicit_P), self.boost * (usual or 1.0))
        rows_MP = view.own_MP + wish_P
        length = float(np.linalg.norm(view.own_MP, axis=1).mean()) if self.hidden else view.clipping_norm
        return np.stack([of_norm(row_P, length) for row_P in rows_MP]).astype(np.float32)

    def _alignment(self, view: View) -> np.ndarray:
        popular = torch.from_numpy(np.setdiff1d(most_popular(view.popularity_I, self.popular), view.targets_T))

        def loss(patch: dict[str, torch.Tensor]) -> torch.Tensor:
            vectors = view.model.item_vectors(patch)
            away = vectors[torch.from_numpy(view.targets_T)] - vectors[popular].mean(0).detach()
            return away.square().sum()

        return -view.model.gradient(view.patch_P, loss)

    def _explicit(self, view: View) -> np.ndarray:
        lab = view.model
        graphs, seen_UI = lab.present(view.client_ids_M)
        return -lab.gradient(
            view.patch_P, lambda patch: promotion_loss(lab.scores(graphs, patch), seen_UI, view.targets_T, self.top)
        )
