"""What users spent by the rounds they took part in: it depends on who was asked only, so its quantiles may be told.

Every mode by its own accounting, and none with amplification: rows under one Gaussian each add up as Gaussians, steps
of a correlated mechanism by its sensitivity to so many rounds of a user, sums of devices' shares as they are charged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from fedquilt.errors import PrivacyError
from fedquilt.privacy import events as ev
from fedquilt.privacy.accountants import Atom, accountant_named, atom_of
from fedquilt.privacy.book import Book
from fedquilt.privacy.individual import epsilons_of, participation_mu2
from fedquilt.privacy.matrix import sensitivity_of
from fedquilt.privacy.participations import Participations

QUANTILES = (0.0, 0.5, 0.9, 0.99, 1.0)


def user_quantiles(book: Book, opening: ev.RunOpened) -> tuple[dict[str, float] | None, str]:
    """(quantile → epsilon, ""), or (None, why they are not told)."""
    users_U = book.cohorts.get(opening.population_hash)
    releases = [event for event in book.events if event.releases and not getattr(event, "empty", False)]
    if users_U is None or any(getattr(event, "cohort_hash", None) not in book.cohorts for event in releases):
        return None, "not all who took part are on the ledger"
    if not all(getattr(event, "noise_multiplier", 1.0) for event in releases):
        return None, "a release had no noise"
    if not releases:
        return None, "nothing was released"
    try:
        epsilons_U = _epsilons(book, releases, np.sort(users_U), opening)
    except PrivacyError as error:
        return None, str(error)
    return {f"{q:g}": float(np.quantile(epsilons_U, q, method="higher")) for q in QUANTILES}, ""


def _epsilons(book: Book, releases: list[ev.Event], users_U: np.ndarray, opening: ev.RunOpened) -> np.ndarray:
    steps = [event for event in releases if isinstance(event, ev.TreeRelease)]
    others = [event for event in releases if not isinstance(event, ev.TreeRelease)]
    if all(_alone(event) for event in others):
        mu2_U = participation_mu2(_gaussian_rounds(book, others), users_U) + _steps_mu2(book, steps, users_U)
        return epsilons_of(mu2_U, opening.delta)
    if not steps and all(_shared(event) for event in others):
        return _epsilons_of_shares(book, others, users_U, opening)
    raise PrivacyError("what was released adds up for single users in no way that is proven here")


# --- one Gaussian a row ---


def _alone(event: ev.Event) -> bool:
    """Whether a user's share of the release is one Gaussian."""
    if isinstance(event, ev.GraphRelease) and event.noise != "gaussian":
        return False
    kinds = ev.GaussianRelease | ev.AdaptiveClip | ev.GraphRelease | ev.LocalRound
    return isinstance(event, kinds) and event.noise_multiplier > 0


def _gaussian_rounds(book: Book, releases: list[Any]) -> Iterator[tuple[np.ndarray, float]]:
    """(users, noise multiplier); rounds of devices once for every different set of rows."""
    digests: dict[tuple[int, str], set[str]] = {}
    noise: dict[tuple[int, str], float] = {}
    for event in releases:
        if not isinstance(event, ev.LocalRound):
            yield book.cohorts[event.cohort_hash], _multiplier(event)
            continue
        key = event.round_, event.cohort_hash
        digests.setdefault(key, set()).add(event.release_digest)
        noise[key] = _multiplier(event)
    for key, found in digests.items():
        for _ in range(max(len(found - {""}), 1)):
            yield book.cohorts[key[1]], noise[key]


def _multiplier(event: Any) -> float:
    """std / how far a neighbour moves the sum: 2C where a user is replaced."""
    return float(event.noise_multiplier) / (2 if event.neighbours == "replace-one" else 1)


# --- correlated over rounds ---


def _steps_mu2(book: Book, steps: list[ev.TreeRelease], users_U: np.ndarray) -> np.ndarray:
    """mu² [U]: of a user in n steps that of the mechanism whose users are in at most n, as far apart."""
    mu2_U = np.zeros(len(users_U))
    opened = {event.mechanism: event for event in book.events if isinstance(event, ev.MatrixOpened)}
    if unknown := {step.mechanism for step in steps} - set(opened):
        raise PrivacyError(f"mechanism {min(unknown)!r} was not opened")
    for name, mechanism in opened.items():
        cohorts = {step.step: book.cohorts[step.cohort_hash] for step in steps if step.mechanism == name}
        times_U = sum((np.isin(users_U, ids_K).astype(int) for ids_K in cohorts.values()), np.zeros(len(users_U), int))
        for times in np.unique(times_U):
            sensitivity = sensitivity_of(replace(mechanism, max_participations=int(times)))
            mu2_U[times_U == times] += (sensitivity / _multiplier(mechanism)) ** 2
    return mu2_U


# --- shares of the devices ---


def _shared(event: ev.Event) -> bool:
    discrete = isinstance(event, ev.GraphRelease) and event.noise != "gaussian"
    return isinstance(event, ev.DistributedRelease) or discrete


def _epsilons_of_shares(book: Book, releases: list[ev.Event], users_U: np.ndarray, opening: ev.RunOpened) -> np.ndarray:
    """As the run is charged, by the rounds of each user in place of those of the worst."""
    by_atom: dict[Atom, np.ndarray] = {}
    for atom in {atom_of(event): None for event in releases}:
        assert atom is not None  # a release costs
        mine = [event for event in releases if atom_of(event) == atom]
        by_atom[atom] = Participations(users_U, mine, book.cohorts).times_U + _graphs(book, mine, users_U)
    times_UA, where_U = np.unique(np.stack(list(by_atom.values()), axis=1), axis=0, return_inverse=True)
    accountant = accountant_named(opening.accountant)
    counts = [{atom: int(n) for atom, n in zip(by_atom, times_A, strict=True) if n} for times_A in times_UA]
    return np.array([accountant.epsilon(one, opening.delta) for one in counts])[where_U.ravel()]


def _graphs(book: Book, releases: list[ev.Event], users_U: np.ndarray) -> np.ndarray:
    """int [U]: graphs that a user's pairs are in; the same bytes count once."""
    graphs = {event.release_digest: event for event in releases if isinstance(event, ev.GraphRelease)}
    return sum(
        (np.isin(users_U, book.cohorts[event.cohort_hash]).astype(int) for event in graphs.values()),
        np.zeros(len(users_U), int),
    )
