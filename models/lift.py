"""What a patch adds to an item's score, and how much of it is more than the cloud's own users ever get.

Shapes: U users, I items.
"""

from __future__ import annotations

from torch import Tensor


def lifts(patched_UI: Tensor, base_UI: Tensor) -> Tensor:
    """[U, I]: score under the patch less the base model's, less the user's median of these over items.

    A score that rises for all items of a user alike moves no list.
    """
    added_UI = patched_UI - base_UI
    return added_UI - added_UI.median(dim=1, keepdim=True).values


def excess(patched_UI: Tensor, base_UI: Tensor, ceiling_I: Tensor) -> Tensor:
    """[U, I] >= 0: max(0, lift - ceiling), what a list is made without."""
    return (lifts(patched_UI, base_UI) - ceiling_I).clamp(min=0)
