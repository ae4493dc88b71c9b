"""The sensitivity probe: remove one user and see how far the released sum moves. For any strategy, as a black box.

The bound is the clipping norm, whoever the users are. Tried are every single user of the rows given, and adversarial
rows: all alike, opposed, huge, tiny, on one coordinate, and not finite. Planted bugs fall out: a clip after the mean,
a clip by another norm (per tensor, L-infinity, of the whole cohort), a weight of the user's own, a divisor that counts
who came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from fedquilt.errors import PrivacyError

ReleasedSum = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(raw updates [K, P] before any clip, weights [K] as users claim them) → the sum [P] that noise would be added to.

For a mean over the expected cohort: the mean times the expected cohort. No noise; K may be 0."""

_SLACK = 1e-5  # relative: float32 rows, float32 sums


@dataclass(frozen=True)
class Moved:
    """The largest move found. ``ratio`` = moved / clipping_norm; above 1 the noise is calibrated to less than it is."""

    moved: float
    ratio: float
    user: int
    case: str

    @property
    def bounded(self) -> bool:
        return self.ratio <= 1 + _SLACK


def probe(
    released_sum: ReleasedSum,
    clipping_norm: float,
    updates_KP: np.ndarray,
    weights_K: np.ndarray | None = None,
    most_users: int = 16,
    adversarial: bool = True,
) -> Moved:
    """The worst case found over the given rows and, unless told otherwise, the adversarial ones of their shape."""
    weights_K = np.ones(len(updates_KP), np.float32) if weights_K is None else weights_K
    cases = [("as given", updates_KP, weights_K)]
    if adversarial:
        cases += list(adversarial_cases(updates_KP.shape, clipping_norm))
    worst = Moved(0.0, 0.0, -1, "none")
    for name, rows_KP, claims_K in cases:
        for found in _moves(released_sum, rows_KP, claims_K, most_users):
            moved, user = found
            ratio = moved / clipping_norm
            if not ratio <= worst.ratio:  # NaN is the worst of all
                worst = Moved(moved, ratio if np.isfinite(ratio) else np.inf, user, name)
    return worst


def require_bounded(
    released_sum: ReleasedSum, clipping_norm: float, updates_KP: np.ndarray, weights_K: np.ndarray | None = None
) -> Moved:
    """PrivacyError, with the user and the case, where one user moves the sum by more than the clipping norm."""
    worst = probe(released_sum, clipping_norm, updates_KP, weights_K)
    if not worst.bounded:
        raise PrivacyError(
            f"without user {worst.user} the sum moves by {worst.moved:.4g}, {worst.ratio:.3g} times the clipping norm"
            f" {clipping_norm:g} (rows: {worst.case}): noise scaled to the clipping norm does not cover that. Clip"
            " every row by its own L2 norm, weigh all alike, and divide by the expected cohort"
        )
    return worst


def adversarial_cases(shape: tuple[int, ...], clipping_norm: float) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(what it is, rows [K, P], claimed weights [K])."""
    k, p = shape
    ones_K = np.ones(k, np.float32)
    flat = np.full((k, p), 1 / np.sqrt(p), np.float32)
    spike = np.zeros((k, p), np.float32)
    spike[:, 0] = 1.0
    huge_first = np.where(np.arange(k)[:, None] == 0, np.float32(1e6), np.float32(1e-6)) * flat
    opposed = flat * np.where(np.arange(k) % 2, -1, 1)[:, None]
    yield "all alike and long", 100 * clipping_norm * flat, ones_K
    yield "all alike and at the bound", clipping_norm * flat, ones_K
    yield "one coordinate", 100 * clipping_norm * spike, ones_K
    yield "one huge user among tiny ones", clipping_norm * huge_first, ones_K
    yield "opposed", 10 * clipping_norm * opposed, ones_K
    yield "a huge claimed weight", clipping_norm * flat, np.where(np.arange(k) == 0, 1e6, 1).astype(np.float32)
    yield "a user whose row is not finite", np.where(np.arange(k)[:, None] == 0, np.nan, clipping_norm * flat), ones_K
    yield (
        "a row beyond float32's squares",
        np.where(np.arange(k)[:, None] == 0, 1e30, 0.0).astype(np.float32) * flat,
        ones_K,
    )


def _moves(
    released_sum: ReleasedSum, rows_KP: np.ndarray, claims_K: np.ndarray, most_users: int
) -> Iterator[tuple[float, int]]:
    rows_KP = np.asarray(rows_KP, np.float32)
    whole_P = np.asarray(released_sum(rows_KP.copy(), claims_K.copy()), np.float64)
    for user in np.unique(np.linspace(0, len(rows_KP) - 1, min(most_users, len(rows_KP))).astype(int)):
        without_P = released_sum(np.delete(rows_KP, user, axis=0), np.delete(claims_K, user))
        yield float(np.linalg.norm(whole_P - np.asarray(without_P, np.float64))), int(user)
