"""Rows with some tensors as honest training gave them, for a rule that looks only at these."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from client.attacks.contract import View


def spared(view: View, rows_MP: np.ndarray, tensors: Sequence[str]) -> np.ndarray:
    """[M, P]: the colluders' own numbers in these tensors of the patch, ``rows_MP`` in all others.

    ValueError for a tensor that the patch lacks.
    """
    if lacking := [name for name in tensors if name not in view.spec.slices]:
        raise ValueError(f"spare = {list(tensors)}: the patch has no {lacking}, it has {sorted(view.spec.slices)}")
    made_MP = rows_MP.copy()
    for name in tensors:
        made_MP[:, view.spec.slices[name]] = view.own_MP[:, view.spec.slices[name]]
    return made_MP
