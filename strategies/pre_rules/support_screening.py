"""Support screening: who pushes an item that an unusual part of the round pushes loses its place."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from fedquilt.types import PatchSpec
from strategies.item_rows import item_tensors
from strategies.rules import PRE_RULES, RoundContext, missing, require_number, require_users

_SHOWN = ("item_bias", "item_out.")  # what lifts an item in lists; "item_in" acts on those who hold it


@PRE_RULES.register("support-screening")
@dataclass(frozen=True)
class SupportScreening:
    """Left out is whoever pushes an item whose support is above ``factor`` times the ``quantile`` over items of the
    round's supports and above ``share`` of the round's users.  O(K·P).

    In each tensor of items' output rows, user k's push of item i is |x_ki| / t if its bias of i does not fall, else 0;
    t is the round's median of users' longest rows. An item's support is how many push it by ``least`` or more, however
    hard. A softmax loss lifts the few items that a user clicked and lowers all others, so honest pushes are few and far
    from faint, and even a hit is pushed by few of a round, while a promotion that is to move lists is pushed by all
    colluders. The whole row is left out: of a target that loses only its own rows, the rest of the colluders' updates
    goes on. Colluders fewer than the bound pass, and those who push less than ``least``. More than half of a round left
    out: nobody is. A patch without rows of items passes. MissingContextError without a patch spec.
    """

    factor: float = 2.5
    quantile: float = 0.98
    share: float = 0.14
    least: float = 0.02

    source = "fedquilt"
    cost = "K·P"
    rejects = True

    def __post_init__(self) -> None:
        require_number("factor", self.factor)
        for name in ("quantile", "share", "least"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)!r}")

    def __call__(
        self, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
    ) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
        k = require_users(self, updates_KP)
        if context.spec is None:
            raise missing(self, "the layout of the patch", "run it in a federation")
        kept = torch.nonzero(~self._pushing(updates_KP, context.spec)).flatten()
        if len(kept) == k or 2 * len(kept) < k:
            return updates_KP, weights_K, context
        weights, chosen = weights_K[kept], kept.numpy()
        ids_K = None if context.client_ids_K is None else context.client_ids_K[chosen]
        nodes_K = None if context.nodes_K is None else context.nodes_K[chosen]
        return updates_KP[kept], weights / weights.sum(), replace(context, client_ids_K=ids_K, nodes_K=nodes_K)

    def _pushing(self, updates_KP: torch.Tensor, spec: PatchSpec) -> torch.Tensor:
        """bool [K]: pushes an item with too much support."""
        found_K = torch.zeros(len(updates_KP), dtype=torch.bool)
        falls_KI = updates_KP[:, spec.slices["item_bias"]] < 0 if "item_bias" in spec.slices else None
        for name, (place, width) in item_tensors(spec).items():
            if name.startswith(_SHOWN):
                pushes_KI = _pushes(updates_KP[:, place].reshape(len(updates_KP), -1, width), falls_KI)
                pushes_KI = pushes_KI >= self.least
                support_I = pushes_KI.sum(0, dtype=updates_KP.dtype)
                usual = self.factor * float(support_I.quantile(self.quantile))
                too_many_I = support_I > max(usual, self.share * len(updates_KP))
                found_K |= pushes_KI[:, too_many_I].any(dim=1)
        return found_K


def _pushes(rows_KIW: torch.Tensor, falls_KI: torch.Tensor | None) -> torch.Tensor:
    """[K, I], in units of the median of users' longest rows."""
    lengths_KI = rows_KIW.norm(dim=2)
    if falls_KI is not None:
        lengths_KI = lengths_KI.masked_fill(falls_KI, 0)
    longest_K = lengths_KI.max(dim=1).values
    some = longest_K[longest_K > 0]
    return lengths_KI / some.median() if len(some) else lengths_KI
