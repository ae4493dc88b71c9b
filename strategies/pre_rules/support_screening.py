"""Support screening: who pushes an item that an unusual part of the round pushes loses its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from fedquilt.types import PatchSpec
from strategies.item_rows import item_tensors
from strategies.rules import PRE_RULES, RoundContext, require_number, require_spec, require_users
from strategies.screened import only

_SHOWN = ("item_bias", "item_out.")  # what lifts an item in lists; "item_in" acts on those who hold it


@PRE_RULES.register("support-screening")
@dataclass(frozen=True)
class SupportScreening:
    """Left out is whoever pushes an item whose support is above ``factor`` times the ``quantile`` over items of the
    round's supports and above ``share`` of the round's users, as hard as its other pushers or less.  O(K·P).

    User k's push of item i is what its update adds to i's score for a usual user: x_ki in the bias, <x_ki, g> in the
    output rows, where g is the mean direction of the rows that users lift most; in units of the round's median of
    users' longest rows. An item's support is how many push it by ``least`` or more, however hard. A softmax loss lifts
    the few items that a user clicked and lowers all others, so honest pushes are few and far from faint, and even a
    hit is pushed by few of a round, while a promotion that is to move lists is pushed by all colluders. Of an item's
    pushers those stay who push more than ``alike`` times as hard as their median: who faintly pushes others' hits has
    no clicker left out. The whole row is left out: of a target that loses only its own rows, the rest of the
    colluders' updates goes on. Items with most support come first, and one whose pushers would be more than half of the
    round with those before is passed over. Colluders fewer than the bound pass, and those who lift an item for unusual
    users only. A patch without rows of items passes. MissingContextError without a patch spec.
    """

    factor: float = 2.5
    quantile: float = 0.98
    share: float = 0.14
    least: float = 0.02
    alike: float = 3.0

    source = "fedquilt"
    cost = "K·P"
    rejects = True

    def __post_init__(self) -> None:
        require_number("factor", self.factor)
        require_number("alike", self.alike)
        for name in ("quantile", "share", "least"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be above 0 and at most 1, got {getattr(self, name)!r}")

    def __call__(
        self, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
    ) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
        k = require_users(self, updates_KP)
        spec = require_spec(self, context)
        kept = torch.nonzero(~self._pushing(updates_KP, spec)).flatten()
        if len(kept) == k:
            return updates_KP, weights_K, context
        return only(kept, updates_KP, weights_K, context)

    def _pushing(self, updates_KP: torch.Tensor, spec: PatchSpec) -> torch.Tensor:
        """bool [K]: pushes an item with too much support; at most half of the users."""
        found_K = torch.zeros(len(updates_KP), dtype=torch.bool)
        for pushes_KI in _pushes(updates_KP, spec):
            does_KI = pushes_KI >= self.least
            support_I = does_KI.sum(0, dtype=updates_KP.dtype)
            bound = max(self.factor * float(support_I.quantile(self.quantile)), self.share * len(updates_KP))
            for item in support_I.argsort(descending=True, stable=True).tolist():
                if support_I[item] <= bound:
                    break
                more_K = found_K | (does_KI[:, item] & self._alike(pushes_KI[:, item], does_KI[:, item]))
                found_K = more_K if 2 * int(more_K.sum()) <= len(found_K) else found_K
        return found_K

    def _alike(self, pushes_K: torch.Tensor, does_K: torch.Tensor) -> torch.Tensor:
        """bool [K]: pushes no more than ``alike`` times as hard as the median of those who do."""
        return pushes_K <= self.alike * pushes_K[does_K].quantile(0.5)


def _pushes(updates_KP: torch.Tensor, spec: PatchSpec) -> Iterator[torch.Tensor]:
    """[K, I] for each tensor that lifts items in lists, in units of the median of users' longest rows."""
    bias_KI = updates_KP[:, spec.slices["item_bias"]] if "item_bias" in spec.slices else None
    for name, (place, width) in item_tensors(spec).items():
        if name.startswith(_SHOWN):
            rows_KIW = updates_KP[:, place].reshape(len(updates_KP), -1, width)
            longest_K = rows_KIW.norm(dim=2).max(dim=1).values
            some = longest_K[longest_K > 0]
            unit = some.median() if len(some) else torch.ones(())
            yield (rows_KIW @ _usual_direction(rows_KIW, bias_KI)) / unit


def _usual_direction(rows_KIW: torch.Tensor, bias_KI: torch.Tensor | None) -> torch.Tensor:
    """[W], of length 1 or 0: the mean over users of the direction of the row that each lifts most.

    That is the one whose bias rises most, and the longest in a patch without biases. A clicked item's row moves towards
    its user's vector, so this is a usual user's. Biases, which are one wide, point up.
    """
    if rows_KIW.shape[2] == 1:
        return torch.ones(1, dtype=rows_KIW.dtype)
    lifted_K = (rows_KIW.norm(dim=2) if bias_KI is None else bias_KI).argmax(dim=1)
    directions_KW = torch.nn.functional.normalize(rows_KIW[torch.arange(len(rows_KIW)), lifted_K], dim=1)
    return torch.nn.functional.normalize(directions_KW.mean(dim=0), dim=0)
