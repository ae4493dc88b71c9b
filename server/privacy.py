"""A run's privacy ledger: begun with what is claimed, opened again by a resume, and read for what was spent."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fedquilt.code import code_hash
from fedquilt.config import Config
from fedquilt.errors import LedgerError, PrivacyError
from fedquilt.privacy.accountants import ACCOUNTANTS, compose
from fedquilt.privacy.book import read_book
from fedquilt.privacy.events import BudgetRaised, Deviation, GaussianRelease, RunOpened, RunResumed, Sampler, ids_hash
from fedquilt.privacy.filter import Budget, PrivacyFilter
from fedquilt.privacy.gate import Gate
from fedquilt.privacy.ledger import FILE, Head, Ledger
from fedquilt.privacy.plan import delta_for, plan_noise, sampler_for
from fedquilt.privacy.randomness import Secret, Simulated, Source, commitment
from fedquilt.privacy.samplers import SamplingPlan
from fedquilt.privacy.verify import budget_of
from fedquilt.runs import RunFolder
from server.in_process import InProcessGrid
from strategies.central import CentralRounds, require_private

KEY = "privacy.key"
_SIMULATED = ("InMemoryGrid",)  # Flower's own engine for simulations, by name: importing it loads Ray
_OUTSIDE = (
    "outside the guarantee: the cloud's own model, trained on clicks that the cloud holds already; evaluation tables;"
    " counts and names of replies and rejections in metrics.jsonl and report.html. No noise covers these: they are for"
    " the operator, and published they would add to what is known of a user"
)


def require_possible(config: Config) -> None:
    """PrivacyError for what cannot be made private, before the cloud is trained."""
    privacy = config.privacy
    if privacy.mode == "none":
        return
    require_private(config)
    if bool(privacy.noise_multiplier) == bool(privacy.epsilon):
        raise PrivacyError(
            f"privacy.mode = {privacy.mode!r} takes privacy.noise_multiplier or privacy.epsilon (the noise is then"
            f" planned), exactly one of them above 0; got {privacy.noise_multiplier:g} and {privacy.epsilon:g}"
        )


def require_deployable(config: Config, grid: Grid) -> None:
    """PrivacyError where real devices would be promised noise that anyone with the configuration can subtract."""
    simulated = isinstance(grid, InProcessGrid) or type(grid).__name__ in _SIMULATED
    if config.privacy.mode != "none" and config.privacy.randomness != "secret" and not simulated:
        raise PrivacyError(
            "privacy.randomness = 'simulated': noise and cohorts come from the run's seed, which every device is told,"
            " so they protect nobody. Deployed runs need privacy.randomness = 'secret'"
        )


# --- opening ---


def open_rounds(
    config: Config, run: RunFolder, grid: Grid, population_U: np.ndarray, round_: int, heads: Iterable[str]
) -> CentralRounds:
    """The run's private rounds after ``round_``: on a new ledger, or on the one that holds every head of ``heads``.

    LedgerError where the ledger is missing, damaged, or older than what the run remembers of it.
    """
    require_possible(config)
    require_deployable(config, grid)
    remembered = [head for head in heads if head]
    path = run.path / FILE
    if not path.exists():
        if remembered:
            raise LedgerError(
                f"{path} is missing, and the run has released rounds already ({remembered[-1][:24]}): bring back the"
                " ledger; without it nothing more is released"
            )
        _begin(path, config, population_U, _source(config, run, new=True))
    ledger = Ledger.open(path)
    for head in remembered:
        ledger.require_contains(Head.parse(head))
    opening, source = _opening(ledger), _source(config, run, new=False)
    if commitment(source) != opening.sampling_commitment or ids_hash(population_U) != opening.population_hash:
        raise LedgerError(f"{path} was begun with another key, seed or population: nothing is released")
    if len(ledger.events()) > _NUM_OPENING:
        ledger.append(RunResumed(opening.run, round_, config.hash(), code_hash()))
    budget = budget_of(ledger.events())
    limits = [] if budget is None else [Budget(budget, opening.delta, opening.population)]
    gate = Gate(ledger, [PrivacyFilter(limit, past=ledger.events()) for limit in limits])
    plan = SamplingPlan(opening.sampler, population_U, source)
    named = config.federation.aggregator
    rule = "mean" if named == "weighted-mean" else named  # all weights are equal
    noise = opening.noise_multiplier
    return CentralRounds(opening.run, plan, gate, noise, opening.clipping_norm, rule, require_private(config))


_NUM_OPENING = 2


def _begin(path: Path, config: Config, population_U: np.ndarray, source: Source) -> None:
    """A whole ledger with its opening, or none: written beside and renamed, as a kill must leave no half of it."""
    beside = path.with_name(f"{path.name}.new")
    for left in (beside, beside.with_name(f"{beside.name}-journal")):
        left.unlink(missing_ok=True)
    ledger = Ledger.create(beside)
    opening = _claim(config, population_U, source)
    ledger.append(opening, population_U)
    ledger.append(Deviation(opening.run, 0, _OUTSIDE))
    ledger.close()
    _rename(beside, path)


def _claim(config: Config, population_U: np.ndarray, source: Source) -> RunOpened:
    privacy, users = config.privacy, len(population_U)
    delta = delta_for(privacy.delta or None, users)
    sampler = _sampler(config, users)
    noise = privacy.noise_multiplier or _planned(config, sampler, users, delta)
    return RunOpened(
        run=f"{config.name}-{config.hash()}",  # not the folder's name: equal simulations shall have equal noise
        round_=0,
        population=users,
        population_hash=ids_hash(population_U),
        sampler=sampler,
        noise_multiplier=noise,
        clipping_norm=config.federation.clipping_norm,
        expected_cohort=sampler.rate * users,
        delta=delta,
        budget_epsilon=privacy.budget_epsilon or privacy.epsilon or None,
        neighbours="replace-one" if sampler.kind == "fixed-size" else "add-or-remove",
        randomness=source.kind,
        sampling_commitment=commitment(source),
        config_hash=config.hash(),
        code_hash=code_hash(),
    )


def _sampler(config: Config, users: int) -> Sampler:
    kind = {"fixed": "fixed-size"}.get(config.privacy.sampler, config.privacy.sampler)
    return sampler_for(kind, min(config.federation.cohort_size, users), users)


def _planned(config: Config, sampler: Sampler, users: int, delta: float) -> float:
    rounds = max(config.federation.rounds, 1)
    return plan_noise(config.privacy.epsilon, sampler, rounds, users, delta).noise_multiplier


def _source(config: Config, run: RunFolder, new: bool) -> Source:
    """A resumed run needs the key it began with: else its cohorts and noise would be others, and charged again."""
    if config.privacy.randomness == "simulated":
        return Simulated(config.seed)
    path = run.path / KEY
    if not path.exists():
        if not new:
            raise PrivacyError(f"{path} is missing: bring back the key that the run began with, or start a new run")
        _write_key(path, Secret.new().key)
    return Secret(path.read_bytes())


def _write_key(path: Path, key: bytes) -> None:
    """Whole or not at all, and never readable by others."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(descriptor)
    _rename(beside, path)


def _rename(beside: Path, path: Path) -> None:
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _opening(ledger: Ledger) -> RunOpened:
    for event in ledger.events():
        if isinstance(event, RunOpened):
            return event
    raise LedgerError(f"{ledger.path} has no run-opened event: it is not the ledger of a run")


# --- afterwards ---


def raise_budget(run: RunFolder, epsilon: float) -> None:
    """Say, on the ledger and for every statement, that the run may spend up to ``epsilon`` in all."""
    with run.writing():
        if not (run.path / FILE).exists():
            raise PrivacyError(f"{run.path} has no privacy ledger, so it has no budget to raise")
        ledger = Ledger.open(run.path / FILE)
        events, opening = ledger.events(), _opening(ledger)
        before = budget_of(events)
        if before is None or not before < epsilon < float("inf"):
            had = "has no budget" if before is None else f"has a budget of epsilon {before:g}"
            raise PrivacyError(f"{run.path} {had}: {epsilon:g} does not raise it")
        ledger.append(BudgetRaised(opening.run, max(event.round_ for event in events), epsilon))
        ledger.close()


def summary(run: RunFolder) -> dict[str, Any] | None:
    """What was spent, from the ledger's events alone; None for a run without a ledger."""
    if not (run.path / FILE).exists():
        return None
    book, findings = read_book(run.path / FILE)
    opening = book.opening
    if findings or opening is None:
        raise LedgerError(f"{run.path / FILE}: {findings[0].text if findings else 'no run-opened event'}")
    rounds = {event.round_ for event in book.events if isinstance(event, GaussianRelease)}
    return {
        "mode": opening.mechanism,
        "epsilon": ACCOUNTANTS[opening.accountant].epsilon(compose(book.events).counts, opening.delta),
        "delta": opening.delta,
        "budget_epsilon": budget_of(book.events),
        "noise_multiplier": opening.noise_multiplier,
        "sampler": opening.sampler.kind,
        "expected_cohort": opening.expected_cohort,
        "randomness": opening.randomness,
        "rounds": len(rounds),
        "accountant": opening.accountant,
    }
