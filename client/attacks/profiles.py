"""Shilling profiles: filler clicks, and clicks on the targets among them. A profile is as long as the real history.

Ratings do not exist here, so the classic profiles differ by which fillers they choose.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from client.attacks.contract import Clicks

Filler = Callable[[np.random.Generator, int], np.ndarray]
"""(generator, count) -> item ids [count], none of them a target."""


def profiles(clicks: Clicks, filler: Filler, share: float) -> dict[int, np.ndarray]:
    """For each attacker round(share · L) clicks on targets, at least 1, at random places among fillers, L in all."""
    forged = {}
    for user, items in clicks.histories.items():
        count = min(max(round(share * len(items)), 1), len(items))
        mine = np.resize(clicks.generator.permutation(clicks.targets_T), count)
        both = np.concatenate([filler(clicks.generator, len(items) - count), mine])
        forged[user] = clicks.generator.permutation(both)
    return forged


def drawn(clicks: Clicks, mass_I: np.ndarray) -> Filler:
    """Fillers drawn in proportion to ``mass_I``; without repeats, as long as there are enough items of any mass."""
    mass_I = mass_I.astype(np.float64).copy()
    mass_I[clicks.targets_T] = 0
    if not mass_I.any():
        mass_I[:] = 1
        mass_I[clicks.targets_T] = 0
    chances_I, enough = mass_I / mass_I.sum(), int(np.count_nonzero(mass_I))

    def filler(generator: np.random.Generator, count: int) -> np.ndarray:
        return generator.choice(clicks.num_items, count, replace=count > enough, p=chances_I)

    return filler


def most_popular(popularity_I: np.ndarray, share: float) -> np.ndarray:
    """Item ids, best first; at least one. Ties: the smaller id."""
    return np.argsort(-popularity_I, kind="stable")[: max(round(share * len(popularity_I)), 1)]


def mask_of(items: np.ndarray, num_items: int) -> np.ndarray:
    mask_I = np.zeros(num_items)
    mask_I[items] = 1
    return mask_I


def require_share(share: float) -> None:
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
