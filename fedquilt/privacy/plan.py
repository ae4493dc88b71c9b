"""Planning: noise for a target epsilon, rounds for a budget, and what every assumption about sampling would cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fedquilt.errors import PrivacyError
from fedquilt.privacy.accountants import ACCOUNTANTS, Atom, accountant_named
from fedquilt.privacy.events import FixedOrder, FixedSize, NoSampling, Poisson, Sampler
from fedquilt.privacy.gaussian import default_delta, require_delta, require_epsilon

MOST_ROUNDS = 1_000_000


@dataclass(frozen=True)
class Plan:
    """Central noise, every round alike. ``noise_multiplier`` = std / clipping_norm."""

    sampler: Sampler
    noise_multiplier: float
    rounds: int
    population: int
    delta: float
    accountant: str

    @property
    def atom(self) -> Atom:
        return atom_for(self.sampler, self.noise_multiplier)

    @property
    def epsilon(self) -> float:
        return ACCOUNTANTS[self.accountant].epsilon({self.atom: self.rounds}, self.delta)


@dataclass(frozen=True)
class Assumption:
    """One row: what the same noise and rounds cost if cohorts were drawn thus. ``note`` says what it takes."""

    sampling: str
    neighbours: str
    accountant: str
    epsilon: float
    executed: bool
    note: str = ""


def sampler_for(kind: str, cohort_size: int, population: int) -> Sampler:
    """poisson, fixed-size, none or fixed-order, with ``cohort_size`` users a round (expected, for Poisson)."""
    if not 1 <= cohort_size <= population:
        raise PrivacyError(f"need 1 <= cohort size <= users; got {cohort_size} of {population}")
    made: dict[str, Callable[[], Sampler]] = {
        "poisson": lambda: Poisson(cohort_size / population),
        "fixed-size": lambda: FixedSize(cohort_size, population),
        "none": NoSampling,
        "fixed-order": lambda: FixedOrder(max(population // cohort_size, 1)),
    }
    if kind not in made:
        raise PrivacyError(f"no sampler named {kind!r}; known: {', '.join(made)}")
    return made[kind]()


def atom_for(sampler: Sampler, noise_multiplier: float) -> Atom:
    """Replacing a user moves a clipped sum by 2C: half the multiplier under fixed size."""
    z = noise_multiplier / 2 if isinstance(sampler, FixedSize) else noise_multiplier
    return Atom("gaussian", (z,), "none" if sampler.rate == 1 else sampler.kind, sampler.rate)


def delta_for(delta: float | None, population: int) -> float:
    return default_delta(population) if delta is None else require_delta(delta, population)


def plan_noise(
    epsilon: float, sampler: Sampler, rounds: int, population: int, delta: float | None = None, accountant: str = "rdp"
) -> Plan:
    """The smallest noise multiplier, to 0.1 %, with which ``rounds`` rounds stay within epsilon."""
    require_epsilon(epsilon)
    _require_rounds(rounds)
    chosen, delta = accountant_named(accountant), delta_for(delta, population)

    def fits(z: float) -> bool:
        return chosen.epsilon({atom_for(sampler, z): rounds}, delta) <= epsilon

    noise = smallest_noise(fits, f"epsilon {epsilon:g} at delta {delta:g} over {rounds} rounds")
    return Plan(sampler, noise, rounds, population, delta, accountant)


def smallest_noise(fits: Callable[[float], bool], what: str) -> float:
    """The smallest noise multiplier, to 0.1 %, that fits; ``what`` it is to fit, for the error."""
    low, high = 0.0, 1.0
    while not fits(high):
        low, high = high, 2 * high
        if high > 1e6:
            raise PrivacyError(f"no noise up to 1e6 gives {what}")
    low = low or 0.02
    while high - low > 1e-3 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high


def plan_rounds(
    epsilon: float,
    sampler: Sampler,
    noise_multiplier: float,
    population: int,
    delta: float | None = None,
    accountant: str = "rdp",
    most: int = MOST_ROUNDS,
) -> Plan:
    """The most rounds that stay within epsilon. PrivacyError where not one does."""
    require_epsilon(epsilon)
    chosen, delta = accountant_named(accountant), delta_for(delta, population)
    if noise_multiplier <= 0:
        raise PrivacyError(f"noise_multiplier = {noise_multiplier:g} with a budget: no budget covers no noise")
    atom = atom_for(sampler, noise_multiplier)

    def fits(rounds: int) -> bool:
        return chosen.epsilon({atom: rounds}, delta) <= epsilon

    if not fits(1):
        raise PrivacyError(
            f"one round at noise multiplier {noise_multiplier:g} costs {chosen.epsilon({atom: 1}, delta):.3g} already,"
            f" more than epsilon {epsilon:g}: take more noise"
        )
    return Plan(sampler, noise_multiplier, largest_count(fits, most), population, delta, accountant)


def largest_count(fits: Callable[[int], bool], most: int) -> int:
    """The largest count up to ``most`` that fits, where one does and all below one that fits do."""
    low, high = 1, 2
    while high < most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


_PUBLISHED = "as papers print it: holds only where replacing a user moves the sum by C, not 2C"
_ROWS: tuple[tuple[str, str, str, str], ...] = (
    ("poisson", "add-or-remove", "pld", "every user by an own coin"),
    ("poisson", "add-or-remove", "prv", "every user by an own coin"),
    ("poisson", "add-or-remove", "rdp", "every user by an own coin"),
    ("fixed-size", "replace-one", "rdp", "replacing a user moves the clipped sum by 2C"),
    ("fixed-size*", "replace-one", "rdp", _PUBLISHED),
    ("none", "add-or-remove", "gdp", "exact; whoever takes part, and however often"),
    ("none", "add-or-remove", "rdp", "whoever takes part, and however often"),
)


def assumptions(
    plan: Plan, cohort_size: int, accountants: Sequence[str] = ("pld", "rdp", "gdp", "prv")
) -> list[Assumption]:
    """The same noise and rounds under every assumption side by side; ``executed`` marks the plan's own sampler."""
    z, rate = plan.noise_multiplier, cohort_size / plan.population
    atoms = {
        "poisson": Atom("gaussian", (z,), "poisson", rate),
        "fixed-size": Atom("gaussian", (z / 2,), "fixed-size", rate),
        "fixed-size*": Atom("gaussian", (z,), "fixed-size", rate),
        "none": Atom("gaussian", (z,)),
    }
    rows = []
    for sampling, neighbours, accountant, note in _ROWS:
        if accountant not in accountants or (rate == 1 and sampling != "none"):
            continue
        epsilon = ACCOUNTANTS[accountant].epsilon({atoms[sampling]: plan.rounds}, plan.delta)
        kind = "none" if plan.sampler.rate == 1 else plan.sampler.kind
        rows.append(Assumption(sampling, neighbours, accountant, epsilon, sampling == kind, note))
    return rows


def curve(plan: Plan, points: int = 12) -> list[tuple[int, float]]:
    """(rounds, epsilon) along the plan."""
    accountant = ACCOUNTANTS[plan.accountant]
    return [(n, accountant.epsilon({plan.atom: n}, plan.delta)) for n in steps_to(plan.rounds, points)]


def steps_to(rounds: int, points: int) -> list[int]:
    """At most so many counts of rounds, evenly up to all of them."""
    return sorted({max(1, round(rounds * i / points)) for i in range(1, points + 1)})


def _require_rounds(rounds: int) -> None:
    if rounds < 1:
        raise PrivacyError(f"a plan has at least one round; got {rounds}")
