"""What each user has spent, which is less than the bound that holds for all (Feldman and Zrnic 2021, arXiv:2008.11193).

Two views. *Participation*: a user pays one unsampled Gaussian for every round taken part in; it depends on the draw of
cohorts only, so its quantiles may be shown. *Norms*: a user whose row was shorter than the clipping norm pays less; it
depends on the user's data, so it stays secret: it may stop a user (an individual filter), never be shown. Devices keep
such accounts (``privacy.device_norms``), and show them to their owners (``device_epsilons``).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping

import numpy as np

from fedquilt.errors import PrivacyError
from fedquilt.privacy.accountants import atom_of
from fedquilt.privacy.book import Book, Finding
from fedquilt.privacy.device_events import DeviceLimit, DeviceRound, release_key
from fedquilt.privacy.event_base import Event
from fedquilt.privacy.gaussian import gaussian_epsilon


def participation_mu2(
    rounds: Iterable[tuple[np.ndarray, float]], client_ids_U: np.ndarray, norms: Iterable[np.ndarray] | None = None
) -> np.ndarray:
    """mu² [U] of every user, exact for adaptive rounds: Σ over the user's rounds of (norm / C)² / z².

    ``rounds``: (client ids [K] of the cohort, noise multiplier). ``norms``: per round [K], norm / clipping norm of
    every row in [0, 1]; without them every row counts as 1. ``client_ids_U`` is sorted.
    """
    mu2_U = np.zeros(len(client_ids_U))
    lengths = iter(norms) if norms is not None else None
    for client_ids_K, noise_multiplier in rounds:
        places_K = np.searchsorted(client_ids_U, client_ids_K)
        if len(client_ids_K) and not np.array_equal(client_ids_U.take(places_K, mode="clip"), client_ids_K):
            raise PrivacyError("a cohort holds users who are not in the population; record a population-changed event")
        share_K: np.ndarray | float = 1.0 if lengths is None else _shares(next(lengths), len(client_ids_K))
        mu2_U[places_K] += share_K**2 / noise_multiplier**2 if noise_multiplier else math.inf
    return mu2_U


def epsilons_of(mu2_U: np.ndarray, delta: float) -> np.ndarray:
    """epsilon [U] at delta; one root search per distinct mu."""
    values, inverse_U = np.unique(mu2_U, return_inverse=True)
    return np.array([gaussian_epsilon(math.sqrt(value), delta) for value in values])[inverse_U]


def device_epsilons(
    events: Iterable[Event], cohorts: Mapping[str, np.ndarray], delta: float
) -> dict[int, float] | None:
    """user → exact epsilon of all rounds on a device's own ledger: mu² = Σ (norm share)² / z², or of full clips.

    For the device's owner: it may depend on the user's data. None where a round is no single Gaussian, or its users are
    not recorded.
    """
    mu2: defaultdict[int, float] = defaultdict(float)
    try:
        for event, ids_K in _charged(events, cohorts):
            _add(mu2, event, ids_K)
    except PrivacyError:
        return None
    return dict(zip(mu2, epsilons_of(np.array(list(mu2.values())), delta).tolist(), strict=True))


def check_device_limits(book: Book) -> Iterator[Finding]:
    """When a device sent something, none of its users was beyond the limit that its ledger said before.

    Of Gaussian rounds; the users of others, or without records, are not held to it here.
    """
    mu2: defaultdict[int, float] = defaultdict(float)
    limit = DeviceLimit("", 0, 0.0, 0.5)
    try:
        for event, ids_K in _charged(book.events, book.cohorts):
            if isinstance(event, DeviceLimit):
                limit = event
            _add(mu2, event, ids_K)
            worst = max((mu2[user] for user in ids_K.tolist()), default=0.0)
            spent = gaussian_epsilon(math.sqrt(worst), limit.delta) if limit.epsilon else 0.0
            if spent > limit.epsilon * (1 + 1e-9):
                yield Finding("limit", f"round {event.round_} of {event.run!r}: a user's epsilon came to {spent:.4g} at"
                              f" delta {limit.delta:g}, the device's limit is {limit.epsilon:g}")  # fmt: skip
                return
    except PrivacyError:
        return


def _charged(
    events: Iterable[Event], cohorts: Mapping[str, np.ndarray]
) -> Iterator[tuple[DeviceRound | DeviceLimit, np.ndarray]]:
    """Rounds that cost their users [K] something, and limits. PrivacyError for what is no Gaussian of known users."""
    sent = set[Hashable]()
    for event in events:
        if isinstance(event, DeviceLimit):
            yield event, np.empty(0, np.int64)
        if not isinstance(event, DeviceRound):
            continue
        ids_K = cohorts.get(event.cohort_hash)
        if event.noise != "gaussian" or ids_K is None:
            raise PrivacyError(f"round {event.round_}: no Gaussian, or of users who are not recorded")
        key = release_key(event), event.cohort_hash, event.release_digest
        if key not in sent:
            sent.add(key)
            yield event, ids_K


def _add(mu2: defaultdict[int, float], event: Event, ids_K: np.ndarray) -> None:
    atom = atom_of(event)
    if atom is None:
        return
    z = atom.parameters[0]
    for user in ids_K.tolist():
        mu2[user] += 1 / z**2 if z else math.inf


def _shares(shares_K: np.ndarray, count: int) -> np.ndarray:
    if len(shares_K) != count or not np.all((shares_K >= 0) & (shares_K <= 1)):
        raise PrivacyError(f"need one norm / clipping_norm in [0, 1] for each of {count} users of the cohort")
    return np.asarray(shares_K, np.float64)
