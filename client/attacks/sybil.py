"""Sybils: one attacker behind many identities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from client.attacks.contract import ATTACKS, COLLUDERS, OWN, View
from client.attacks.vectors import mean, of_norm


@ATTACKS.register("sybil")
@dataclass(frozen=True)
class Sybil:
    """One row against the colluders' honest mean, sent under all names, at full norm.

    ``jitter`` > 0 hides the likeness from rules that look for equal rows (FoolsGold): each name adds noise that is
    orthogonal to the row and cancels over names, of ``jitter`` times its norm, before rows are cut to the norm again.
    """

    jitter: float = 0.0
    kind = "updates"
    goal = "untargeted"
    knows = frozenset({OWN, COLLUDERS})
    source = "Fung, Yoon and Beschastnikh 2020, arXiv:1808.04866"

    def rows(self, view: View) -> np.ndarray:
        row_P = of_norm(-mean(view.own_MP), view.clipping_norm)
        rows_MP = np.repeat(row_P[None], len(view.own_MP), axis=0)
        if self.jitter:
            noise_MP = view.generator.standard_normal(rows_MP.shape)
            noise_MP -= noise_MP.mean(axis=0)
            noise_MP -= np.outer(noise_MP @ row_P, row_P) / max(float(row_P @ row_P), 1e-12)
            lengths_M1 = np.linalg.norm(noise_MP, axis=1, keepdims=True)
            rows_MP = rows_MP + self.jitter * np.linalg.norm(row_P) * noise_MP / np.maximum(lengths_M1, 1e-12)
        return np.stack([of_norm(row, view.clipping_norm) for row in rows_MP]).astype(np.float32)
