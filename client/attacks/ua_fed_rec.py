"""UA-FedRec-style untargeted attack."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from client.attacks.contract import ATTACKS, COLLUDERS, OWN, View
from client.attacks.vectors import alike, mean, of_norm, std, unit


@ATTACKS.register("ua-fed-rec")
@dataclass(frozen=True)
class UaFedRec:
    """Pushes the model of users off, like items apart and unlike items together, and claims many examples.

    User model: mu - z sigma sign(mu) of the colluders' own rows. Items: -gradient of the mean over items i of
    cos(v_i, v_near(i)) - cos(v_i, v_far(i)), near and far in the base model's vectors, which stand in for the paper's
    news content. Both at equal length, at the clipping norm. ``claimed_examples`` is the paper's quantity perturbation;
    it counts only where federation.weighting says so.
    """

    z: float = 1.5
    claimed_examples: int = 1_000_000
    kind = "updates"
    goal = "untargeted"
    knows = frozenset({OWN, COLLUDERS})
    source = "Yi et al. 2022, UA-FedRec, arXiv:2202.06701"

    def rows(self, view: View) -> np.ndarray:
        mean_P = mean(view.own_MP)
        user_P = mean_P - self.z * std(view.own_MP) * np.sign(mean_P)
        row_P = unit(user_P) + unit(self._items(view))
        return alike(of_norm(row_P, view.clipping_norm), len(view.own_MP))

    def _items(self, view: View) -> np.ndarray:
        fixed = torch.nn.functional.normalize(view.model.weights.item_vectors, dim=1)
        alike_II = (fixed @ fixed.T).fill_diagonal_(-2)
        near_I, far_I = alike_II.argmax(1), alike_II.fill_diagonal_(2).argmin(1)

        def loss(patch: dict[str, torch.Tensor]) -> torch.Tensor:
            vectors = torch.nn.functional.normalize(view.model.item_vectors(patch)[:, :-1], dim=1)
            to_near = (vectors * vectors[near_I].detach()).sum(1)
            return (to_near - (vectors * vectors[far_I].detach()).sum(1)).mean()

        return -view.model.gradient(view.patch_P, loss)
