"""Canary users: each sends one direction of its own, as loud as it can, in every round it is drawn for, or nothing.

Directions have disjoint supports, so they are orthogonal, and few entries, so that a sparse upload keeps them whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedquilt.errors import PrivacyError

MOST_ENTRIES = 32  # of one direction
LOUD = 1000.0  # norm of a canary's raw row / clipping norm: whoever forgets to clip a user, on whichever side, hears it
CLAIMED_EXAMPLES = 1_000_000  # whoever believes a user's weight hears that too


@dataclass(frozen=True)
class Canaries:
    """``ids_M`` sorted; ``in_M`` the coins; ``signs_MS``: ±1 on entries [j S, (j+1) S) of the patch, for canary j.

    ``opposed``: a canary that is out sends its direction negated (neighbours replace a user's row) instead of nothing
    (neighbours leave it out).
    """

    ids_M: np.ndarray
    in_M: np.ndarray
    signs_MS: np.ndarray
    num_parameters: int
    opposed: bool = False

    def __len__(self) -> int:
        return len(self.ids_M)

    def rows(self, ids_K: np.ndarray, norm: float) -> np.ndarray:
        """float32 [K, P]: what these clients send, of L2 norm ``norm``; zeros for clients with nothing to send."""
        rows_KP = np.zeros((len(ids_K), self.num_parameters), np.float32)
        place_K, loud_K = self._loudness(ids_K)
        width = self.signs_MS.shape[1]
        values_KS = (norm / np.sqrt(width)) * loud_K[:, None] * self.signs_MS[place_K]
        columns_KS = place_K[:, None] * width + np.arange(width)
        np.put_along_axis(rows_KP, columns_KS, values_KS.astype(np.float32), axis=1)
        return rows_KP

    def sends(self, ids_K: np.ndarray) -> np.ndarray:
        """bool [K]."""
        return self._loudness(ids_K)[1] != 0

    def total(self, ids_K: np.ndarray, norm: float) -> np.ndarray:
        """float64 [P], Σ of ``rows`` without holding them."""
        place_K, loud_K = self._loudness(ids_K)
        width = self.signs_MS.shape[1]
        total_MS = np.zeros(self.signs_MS.shape)
        np.add.at(total_MS, place_K, (norm / np.sqrt(width)) * loud_K[:, None] * self.signs_MS[place_K])
        total_P = np.zeros(self.num_parameters)
        total_P[: total_MS.size] = total_MS.ravel()
        return total_P

    def along(self, update_P: np.ndarray) -> np.ndarray:
        """float64 [M]: the update's length along each canary's direction."""
        parts_MS = np.asarray(update_P, np.float64)[: self.signs_MS.size].reshape(self.signs_MS.shape)
        return (parts_MS * self.signs_MS).sum(axis=1) / np.sqrt(self.signs_MS.shape[1])

    def own_lengths(self, ids_K: np.ndarray, rows_KP: np.ndarray) -> np.ndarray:
        """float64 [K]: each canary's own row along its own direction. ``ids_K``: canaries only."""
        place_K, width = np.searchsorted(self.ids_M, ids_K), self.signs_MS.shape[1]
        parts_KS = np.take_along_axis(rows_KP, place_K[:, None] * width + np.arange(width), axis=1)
        return (parts_KS.astype(np.float64) * self.signs_MS[place_K]).sum(axis=1) / np.sqrt(width)

    def _loudness(self, ids_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(place among the canaries, +1, -1 or 0) of each client; place 0 and 0 for a client who is no canary."""
        place_K = np.searchsorted(self.ids_M, ids_K).clip(max=len(self.ids_M) - 1)
        canary_K = self.ids_M[place_K] == ids_K
        out = -1.0 if self.opposed else 0.0
        return np.where(canary_K, place_K, 0), np.where(canary_K, np.where(self.in_M[place_K], 1.0, out), 0.0)


def plant(
    count: int, population_U: np.ndarray, num_parameters: int, generator: np.random.Generator, opposed: bool = False
) -> Canaries:
    """``count`` canaries among the population, or as many as there are users and entries of the patch for."""
    count = min(count, len(population_U), num_parameters)
    if count < 1:
        raise PrivacyError(f"no room for a canary: {len(population_U)} users, {num_parameters} parameters")
    width = min(num_parameters // count, MOST_ENTRIES)
    return Canaries(
        ids_M=np.sort(generator.choice(population_U, count, replace=False)),
        in_M=generator.random(count) < 0.5,
        signs_MS=generator.choice([-1.0, 1.0], (count, width)),
        num_parameters=num_parameters,
        opposed=opposed,
    )
