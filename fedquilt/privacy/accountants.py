"""Accountants: from events to epsilon at a delta. One that cannot vouch for an event refuses it.

Events become *atoms* (a mechanism and how its cohort was drawn); equal atoms are counted, so that ten thousand rounds
compose as fast as one. RDP and PLD are dp-accounting's, PRV is Opacus's, the unsampled Gaussian is exact.

The sum of rows of norm <= C moves by C when a user is added or removed and by up to 2C when one is replaced; the
latter halves the noise multiplier here. A figure for replace-one at the full noise multiplier, as papers print it,
holds for a mechanism whose *replacement* moves the sum by C, which clipping to C does not give.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from fedquilt.errors import PrivacyError
from fedquilt.privacy import events as ev
from fedquilt.privacy.discrete_bounds import skellam_rdp, sum_of_discrete_gaussians_rho
from fedquilt.privacy.gaussian import gaussian_epsilon

REFUSED = {
    "clt": "the central limit form of GDP is not a bound (1.836 where PLD gives 2.125); take rdp, pld or prv",
    "clt-gdp": "the central limit form of GDP is not a bound (1.836 where PLD gives 2.125); take rdp, pld or prv",
}


@dataclass(frozen=True, order=True)
class Atom:
    """``gaussian``: parameters (noise multiplier,); ``zcdp``: (rho,); ``skellam``: (variance, l2, l1).

    ``sampler``: poisson (rate), fixed-size (rate) or none (1).
    """

    mechanism: str
    parameters: tuple[float, ...]
    sampler: str = "none"
    rate: float = 1.0

    def __str__(self) -> str:
        drawn = "no sampling" if self.sampler == "none" else f"{self.sampler} sampling at {self.rate:g}"
        return f"{self.mechanism}{self.parameters} with {drawn}"


def atom_of(event: ev.Event) -> Atom | None:
    """What an event costs by itself; None where it costs nothing."""
    if isinstance(event, ev.DistributedRelease):
        return _distributed(event)
    if isinstance(event, ev.DeviceRound):
        return _of_device(event)
    if isinstance(event, ev.GraphRelease):
        gaussian = event.noise == "gaussian"
        return _gaussian(event.noise_multiplier, event.neighbours, ev.NoSampling()) if gaussian else _discrete(event)
    if isinstance(event, ev.LocalRound):
        return _gaussian(event.noise_multiplier, event.neighbours, ev.NoSampling())
    if isinstance(event, ev.Release):
        if isinstance(event.sampler, ev.FixedSize) and event.neighbours != "replace-one":
            raise PrivacyError(
                f"round {event.round_}: a fixed-size cohort is amplified under replace-one neighbours only; record"
                " neighbours = 'replace-one', or a sampler of 'none' (no amplification) for add-or-remove"
            )
        if isinstance(event.sampler, ev.Poisson) and event.neighbours != "add-or-remove":
            raise PrivacyError(f"round {event.round_}: Poisson sampling is accounted under add-or-remove neighbours")
        return _gaussian(event.noise_multiplier, event.neighbours, event.sampler)
    if isinstance(event, ev.MatrixOpened):
        return _gaussian(event.noise_multiplier / event.sensitivity, event.neighbours, ev.NoSampling())
    if isinstance(event, ev.LocalRelease):
        return _gaussian(event.noise_multiplier, neighbours_of(event), ev.NoSampling())
    return None


def _gaussian(noise_multiplier: float, neighbours: str, sampler: ev.Sampler) -> Atom:
    z = noise_multiplier / 2 if neighbours == "replace-one" else noise_multiplier
    kind = "none" if sampler.rate == 1 else sampler.kind
    return Atom("gaussian", (z,), kind, sampler.rate)


def _distributed(event: ev.DistributedRelease) -> Atom:
    if not isinstance(event.sampler, ev.NoSampling | ev.FixedOrder):
        raise PrivacyError("amplification by sampling is not proven for the discretised sum: record sampler 'none'")
    return _discrete(event)


def _of_device(event: ev.DeviceRound) -> Atom:
    """Nobody but the cloud knows that the cohort was sampled, so a device claims no amplification."""
    if event.noise == "gaussian":
        share = getattr(event, "norm_share", 1.0)
        return _gaussian(event.noise_multiplier / share, event.neighbours, ev.NoSampling())
    return _discrete(event)


def _discrete(event: ev.DistributedRelease | ev.DeviceRound | ev.GraphRelease) -> Atom:
    twice = 2.0 if event.neighbours == "replace-one" else 1.0
    if event.noise == "skellam":
        return Atom("skellam", (event.variance, twice * event.l2, twice * event.l1))
    return Atom(
        "zcdp",
        (sum_of_discrete_gaussians_rho(event.variance, event.shares, twice * event.l2, event.dimension),),
    )


# --- composition ---


@dataclass
class Composition:
    """Counts of atoms, grown one event at a time.

    Releases of one round on one sampled cohort share that sample, so they are not sampled independently: they are
    merged into one Gaussian, 1/z² = Σ 1/z_i², which the sampling then amplifies once. Equal release digests of one
    round under equal noise are the same bytes sent again (a resumed round) and count once. Events that say
    ``participations`` count as often as the worst single user of their run took part: rounds without a user cost that
    user nothing.
    """

    counts: Counter[Atom] = field(default_factory=Counter)
    _groups: dict[tuple[str, int, str], Atom] = field(default_factory=dict)
    _sent: set[Hashable] = field(default_factory=set)
    _worst: dict[tuple[str, Atom], int] = field(default_factory=dict)
    _neighbours: str = ""

    def add(self, event: ev.Event) -> Composition:
        """In place; returns itself."""
        removed, added, sent = self._change(event)
        times = self._times(event, added)
        if added is not None:
            self._neighbours = neighbours_of(event)
        if removed is not None:
            self.counts[removed] -= 1
            if not self.counts[removed]:
                del self.counts[removed]
        if added is not None:
            self.counts[added] += times
            if participations := getattr(event, "participations", 0):
                self._worst[event.run, added] = max(participations, self._worst.get((event.run, added), 0))
            if added.sampler != "none" and isinstance(event, ev.Release):
                self._groups[_group(event)] = added
        if sent is not None:
            self._sent.add(sent)
        return self

    def with_event(self, event: ev.Event) -> Counter[Atom]:
        """The counts that ``add`` would leave; nothing changes."""
        removed, added, _ = self._change(event)
        counts = self.counts.copy()
        if removed is not None:
            counts[removed] -= 1
        if added is not None:
            counts[added] += self._times(event, added)
        return +counts

    def _times(self, event: ev.Event, atom: Atom | None) -> int:
        participations = getattr(event, "participations", 0)
        if atom is None or not participations:
            return 1
        return max(participations - self._worst.get((event.run, atom), 0), 0)

    def _change(self, event: ev.Event) -> tuple[Atom | None, Atom | None, Hashable | None]:
        atom = atom_of(event)
        if atom is None:
            return None, None, None
        if self._neighbours not in ("", neighbours_of(event)):
            raise PrivacyError(
                f"round {event.round_}: {neighbours_of(event)} neighbours after {self._neighbours}: one budget holds"
                " for one neighbouring relation; account for them apart"
            )
        digest = getattr(event, "release_digest", "")
        noise = atom, getattr(event, "mechanism", ""), getattr(event, "clipping_norm", 0.0)
        sent = (event.run, event.round_, event.kind, digest, *noise) if digest else None
        if sent is not None and sent in self._sent:
            return None, None, None
        if atom.sampler == "none" or not isinstance(event, ev.Release):
            return None, atom, sent
        before = self._groups.get(_group(event))
        if before is None:
            return None, atom, sent
        if (before.sampler, before.rate) != (atom.sampler, atom.rate):
            raise PrivacyError(f"round {event.round_}: one cohort is recorded under two samplers, {before} and {atom}")
        return (
            before,
            Atom("gaussian", (joint(before.parameters[0], atom.parameters[0]),), atom.sampler, atom.rate),
            sent,
        )


def neighbours_of(event: ev.Event) -> str:
    return str(getattr(event, "neighbours", "add-or-remove"))


def _group(event: ev.Release) -> tuple[str, int, str]:
    return event.run, event.round_, event.cohort_hash


def joint(*noise_multipliers: float) -> float:
    """Noise multiplier of several releases from one cohort as one: (Σ 1/z²)^-1/2."""
    if not all(noise_multipliers):
        return 0.0
    return 1 / math.sqrt(sum(z**-2 for z in noise_multipliers))


def compose(facts: Iterable[ev.Event]) -> Composition:
    total = Composition()
    for event in facts:
        total.add(event)
    return total


# --- accountants ---


@dataclass(frozen=True)
class Accountant:
    """``unsupported(atom)``: why it cannot vouch for the atom, or "". ``epsilon(counts, delta)``: an upper bound."""

    name: str
    unsupported: Callable[[Atom], str]
    epsilon_of: Callable[[Mapping[Atom, int], float], float]
    adaptive: bool  # whether it may filter noise that is chosen while the run goes on

    def epsilon(self, counts: Mapping[Atom, int], delta: float) -> float:
        for atom in counts:
            require_atom(self, atom)
        if any(atom.mechanism == "gaussian" and atom.parameters[0] < _TINY_Z for atom in counts):
            return math.inf
        return self.epsilon_of(counts, delta) if counts else 0.0


def require_atom(accountant: Accountant, atom: Atom) -> None:
    if why := accountant.unsupported(atom):
        raise PrivacyError(f"accountant {accountant.name!r} cannot vouch for {atom}: {why}")


def require_support(event: ev.Event, accountant: str | Accountant) -> None:
    """PrivacyError, saying why, where the accountant has no proven bound for the event as it was executed."""
    chosen = accountant if isinstance(accountant, Accountant) else accountant_named(accountant)
    atom = atom_of(event)
    if atom is not None:
        require_atom(chosen, atom)


def accountant_named(name: str) -> Accountant:
    if name in REFUSED:
        raise PrivacyError(f"accountant {name!r} is refused: {REFUSED[name]}")
    if name not in ACCOUNTANTS:
        raise PrivacyError(f"no accountant named {name!r}; known: {', '.join(ACCOUNTANTS)}")
    return ACCOUNTANTS[name]


def _rdp_unsupported(atom: Atom) -> str:
    return ""


def _only_gaussian(atom: Atom) -> str:
    if atom.mechanism != "gaussian":
        return "it knows Gaussian noise only; take rdp"
    if atom.sampler == "fixed-size":
        return "no privacy loss distribution of fixed-size sampling is known to it; take rdp, or sampler 'none'"
    return ""


def _only_unsampled(atom: Atom) -> str:
    return _only_gaussian(atom) or (
        "exact Gaussian DP holds without sampling, and its central limit form is no bound"
        if atom.sampler != "none"
        else ""
    )


_TINY_Z = 1e-3  # below it every epsilon is beyond use and expansions overflow: no bound is given


@lru_cache(maxsize=4096)
def _rdp_curve(atom: Atom) -> np.ndarray:
    import dp_accounting as dp
    from dp_accounting.rdp import rdp_privacy_accountant as rdp

    orders = np.array(rdp.DEFAULT_RDP_ORDERS)
    if atom.mechanism == "skellam":
        return skellam_rdp(orders, *atom.parameters)
    if atom.mechanism == "zcdp":
        return atom.parameters[0] * orders
    gaussian = dp.GaussianDpEvent(atom.parameters[0])
    replace = dp.NeighboringRelation.REPLACE_ONE
    add = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    event, relation = {
        "none": lambda: (gaussian, add),
        "poisson": lambda: (dp.PoissonSampledDpEvent(atom.rate, gaussian), add),
        "fixed-size": lambda: (
            dp.SampledWithoutReplacementDpEvent(10**9, math.ceil(10**9 * atom.rate), gaussian),
            replace,
        ),
    }[atom.sampler]()
    with _quiet():
        return rdp.RdpAccountant(orders, relation).compose(event).rdp


@contextmanager
def _quiet() -> Iterator[None]:
    """Orders whose series does not converge are left out (they count as infinite), which dp-accounting warns of."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _rdp_epsilon(counts: Mapping[Atom, int], delta: float) -> float:
    from dp_accounting.rdp import rdp_privacy_accountant as rdp

    total = sum(count * _rdp_curve(atom) for atom, count in counts.items())
    return max(float(rdp.compute_epsilon(np.array(rdp.DEFAULT_RDP_ORDERS), total, delta)[0]), 0.0)


def _split(counts: Mapping[Atom, int]) -> tuple[float, dict[Atom, int]]:
    """-> (mu of all unsampled Gaussians together, the sampled ones)."""
    mu2 = sum(count / atom.parameters[0] ** 2 for atom, count in counts.items() if atom.sampler == "none")
    return math.sqrt(mu2), {atom: count for atom, count in counts.items() if atom.sampler != "none"}


def _grid(counts: Mapping[Atom, int]) -> float:
    """Width of a privacy loss distribution's cells: finer for small losses, coarser for long or lossy runs.

    Coarser cells only raise epsilon (the estimates are pessimistic): by 0.05 % at q = 1 %, z = 1, 10,000 rounds.
    """
    loss = _rdp_epsilon(counts, 1e-6)
    rounds = sum(counts.values())
    return 1e-4 if rounds <= 1000 and loss < 10 else 1e-3 if loss < 100 else 1e-2


def _pld_epsilon(counts: Mapping[Atom, int], delta: float) -> float:
    mu, sampled = _split(counts)
    if not sampled:
        return gaussian_epsilon(mu, delta)
    total = _pld(tuple(sorted(sampled.items())), mu, _grid(counts))
    return max(float(total.get_epsilon_for_delta(delta)), 0.0)


@lru_cache(maxsize=8)
def _pld(sampled: tuple[tuple[Atom, int], ...], mu: float, grid: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld

    total = None
    for atom, count in sampled:
        z = atom.parameters[0]
        one = pld.from_gaussian_mechanism(z, sampling_prob=atom.rate, value_discretization_interval=grid)
        part = one.self_compose(count) if count > 1 else one
        total = part if total is None else total.compose(part)
    assert total is not None  # callers have at least one
    if mu:
        total = total.compose(pld.from_gaussian_mechanism(1 / mu, value_discretization_interval=grid))
    return total


def _prv_epsilon(counts: Mapping[Atom, int], delta: float) -> float:
    """Opacus's upper end of the interval; its own error terms are in it."""
    try:
        from opacus.accountants import PRVAccountant
    except ImportError as error:
        raise PrivacyError(f"accountant 'prv' is Opacus's, which cannot be loaded here: {error}") from None

    mu, sampled = _split(counts)
    if not sampled:
        return gaussian_epsilon(mu, delta)
    accountant = PRVAccountant()
    accountant.history = [(atom.parameters[0], atom.rate, count) for atom, count in sorted(sampled.items())]
    if mu:
        accountant.history.append((1 / mu, 1.0, 1))
    return float(accountant.get_epsilon(delta))


def _gdp_epsilon(counts: Mapping[Atom, int], delta: float) -> float:
    return gaussian_epsilon(_split(counts)[0], delta)


ACCOUNTANTS: dict[str, Accountant] = {
    "rdp": Accountant("rdp", _rdp_unsupported, _rdp_epsilon, adaptive=True),
    "pld": Accountant("pld", _only_gaussian, _pld_epsilon, adaptive=False),
    "prv": Accountant("prv", _only_gaussian, _prv_epsilon, adaptive=False),
    "gdp": Accountant("gdp", _only_unsampled, _gdp_epsilon, adaptive=True),
}


def epsilons(counts: Mapping[Atom, int], deltas: Iterable[float], accountant: str = "pld") -> dict[float, float]:
    """epsilon at each delta."""
    chosen = accountant_named(accountant)
    return {delta: chosen.epsilon(counts, delta) for delta in deltas}
