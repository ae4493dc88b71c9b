"""PIECK: promotion without prior knowledge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from client.attacks.contract import ATTACKS, COLLUDERS, OWN, View
from client.attacks.laboratory import row_norms
from client.attacks.vectors import alike, of_norm

_VARIANTS = ("ipe", "uea")


@ATTACKS.register("pieck")
@dataclass(frozen=True)
class Pieck:
    """Mines popular items from the patches it receives, then pulls the target to them (ipe) or to users (uea).

    Mining: items whose rows moved most, summed over the rounds seen; the ``mined`` first are taken for popular. Until
    two patches have been seen the colluders send their honest updates.
    ipe: -gradient of -sum_p w_p cos(v_t, v_p), w the share of p's movement. uea: popular items stand in for users,
    -gradient of mean_p softplus(-v_p · v_t). Vectors are output vectors with their bias.
    """

    variant: str = "uea"
    mined: int = 10
    kind = "updates"
    goal = "promote"
    knows = frozenset({OWN, COLLUDERS})
    source = "Zhang et al. 2025, PIECK, arXiv:2502.12958"

    def __post_init__(self) -> None:
        if self.variant not in _VARIANTS:
            raise ValueError(f"variant must be one of {', '.join(_VARIANTS)}, got {self.variant!r}")

    def rows(self, view: View) -> np.ndarray:
        moved_I = mine(view)
        if not moved_I.any():
            return view.own_MP
        moved_I = moved_I.copy()
        moved_I[view.targets_T] = 0
        popular = np.argsort(-moved_I, kind="stable")[: self.mined]
        weights = torch.from_numpy(moved_I[popular] / max(moved_I[popular].sum(), 1e-12)).float()
        places, targets = torch.from_numpy(popular), torch.from_numpy(view.targets_T)

        def loss(patch: dict[str, torch.Tensor]) -> torch.Tensor:
            vectors = view.model.item_vectors(patch)
            mined, wanted = vectors[places].detach(), vectors[targets]
            if self.variant == "ipe":
                alike_TP = torch.nn.functional.cosine_similarity(wanted[:, None], mined[None], dim=2)
                return -(alike_TP * weights).sum()
            users = torch.cat([mined[:, :-1], torch.ones(len(mined), 1)], dim=1)
            return torch.nn.functional.softplus(-(users @ wanted.T)).mean()

        row_P = -view.model.gradient(view.patch_P, loss)
        return alike(of_norm(row_P, view.clipping_norm), len(view.own_MP))


def mine(view: View) -> np.ndarray:
    """float64 [I]: how far each item's rows have moved, over all patches that the colluders have seen."""
    before_P = view.memory.get("patch")
    moved_I = view.memory.get("moved", 0.0)
    if before_P is not None:
        moved_I = moved_I + row_norms(view.spec, view.patch_P.astype(np.float64) - before_P)
    view.memory["patch"], view.memory["moved"] = view.patch_P.copy(), moved_I
    return np.asarray(moved_I) if before_P is not None else np.zeros(1)
