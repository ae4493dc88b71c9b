"""A run's privacy ledger: begun with what is claimed, opened again by a resume, and read for what was spent."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.serverapp import Grid

from fedquilt.code import whole_code_hash
from fedquilt.config import Config
from fedquilt.durable import rename_durably
from fedquilt.errors import LedgerError, PrivacyError
from fedquilt.privacy.accountants import ACCOUNTANTS, compose
from fedquilt.privacy.book import read_book
from fedquilt.privacy.events import BudgetRaised, Deviation, GraphRelease, RunOpened, RunResumed, ids_hash
from fedquilt.privacy.filter import Budget, PrivacyFilter
from fedquilt.privacy.gate import Gate
from fedquilt.privacy.keys import KEY, kept_secret, show_cohorts
from fedquilt.privacy.ledger import FILE, Head, Ledger
from fedquilt.privacy.plan import delta_for
from fedquilt.privacy.population import PopulationBudget
from fedquilt.privacy.randomness import Simulated, Source, commitment
from fedquilt.privacy.samplers import SamplingPlan
from fedquilt.privacy.sampling import share_of
from fedquilt.privacy.settings import why_no_norms
from fedquilt.privacy.signing import public_key, read_key
from fedquilt.privacy.verify import budget_of
from fedquilt.runs import RunFolder
from server.in_process import InProcessGrid
from server.mechanisms import Target, make_rounds, mode_of, require_mode, sampler_of
from strategies.private import PrivateRounds

__all__ = ["KEY", "open_rounds", "raise_budget", "require_deployable", "require_possible", "require_secret", "summary"]
_SIMULATED = ("InMemoryGrid",)  # Flower's own engine for simulations, by name: importing it loads Ray
_OUTSIDE = (
    "outside the guarantee: the cloud's own model, trained on clicks that the cloud holds already; evaluation tables;"
    " counts and names of replies and rejections in metrics.jsonl and report.html. No noise covers these: they are for"
    " the operator, and published they would add to what is known of a user"
)

_NORMS = (
    "privacy.device_norms is on: devices with a limit charge users by the norms of their rows, so who declines, and"
    " when, depends on users' data. No noise covers counts and names of who declined; the guarantee is for who sees the"
    " noised sums, and for a user added or removed"
)


def require_possible(config: Config) -> None:
    """PrivacyError for what cannot be made private, before the cloud is trained."""
    privacy = config.privacy
    if privacy.mode == "none":
        if privacy.device_norms:
            raise PrivacyError(why_no_norms(privacy))
        if privacy.signing_key:
            raise PrivacyError("privacy.signing_key signs a privacy ledger, and privacy.mode = 'none' keeps none")
        if privacy.device_epsilon or privacy.population:
            raise PrivacyError(
                "privacy.device_epsilon and privacy.population limit what is spent, and privacy.mode = 'none' spends"
                " without limit: set a mode, or leave them out"
            )
        return
    if privacy.signing_key:
        public_key(read_key(Path(privacy.signing_key)))  # as every checkpoint will, after rounds have left
    require_mode(config)


def require_deployable(config: Config, grid: Grid) -> None:
    """As ``require_secret``, unless the grid is one of a simulation."""
    if not (isinstance(grid, InProcessGrid) or type(grid).__name__ in _SIMULATED):
        require_secret(config)


def require_secret(config: Config) -> None:
    """PrivacyError where real devices would be promised noise that anyone with the configuration can subtract."""
    private = config.privacy.mode != "none" or config.cloud_privacy.on
    if private and config.privacy.randomness != "secret":
        raise PrivacyError(
            "privacy.randomness = 'simulated': noise and cohorts come from the run's seed, which every device is told,"
            " so they protect nobody. Deployed runs need privacy.randomness = 'secret'"
        )


# --- opening ---


def open_rounds(
    config: Config,
    run: RunFolder,
    grid: Grid,
    population_U: np.ndarray,
    round_: int,
    heads: Iterable[str],
    num_parameters: int,
) -> PrivateRounds:
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
        _begin(path, config, population_U, _source(config, run, new=True), num_parameters)
    ledger = Ledger.open(path)
    for head in remembered:
        ledger.require_contains(Head.parse(head))
    opening, source = _opening(ledger), _source(config, run, new=False)
    if commitment(source) != opening.sampling_commitment or ids_hash(population_U) != opening.population_hash:
        raise LedgerError(f"{path} was begun with another key, seed or population: nothing is released")
    if len(ledger.events()) > 1 + len(_remarks(config)):
        ledger.append(RunResumed(opening.run, round_, config.hash(), whole_code_hash()))
    budget = budget_of(ledger.events())
    limits = [] if budget is None else [Budget(budget, opening.delta, opening.population)]
    filters = [PrivacyFilter(limit, opening.accountant, ledger.events()) for limit in limits]
    shared = _population(config, opening, population_U, ledger, round_)
    gate = Gate(ledger, filters, opening.accountant, shared)
    return make_rounds(config, opening, SamplingPlan(opening.sampler, population_U, source), gate, path, num_parameters)


def _population(
    config: Config, opening: RunOpened, population_U: np.ndarray, ledger: Ledger, round_: int
) -> PopulationBudget | None:
    """Its head is told on the run's own ledger whenever the run is opened."""
    privacy = config.privacy
    if not privacy.population:
        return None
    folder, epsilon = Path(privacy.population), privacy.population_epsilon
    shared = PopulationBudget.open(folder, epsilon, opening.delta, population_U, ledger.events())
    ledger.append(shared.seen(opening.run, round_))
    return shared


def _remarks(config: Config) -> tuple[str, ...]:
    return (_OUTSIDE, *mode_of(config).remarks, *((_NORMS,) if config.privacy.device_norms else ()))


def _begin(path: Path, config: Config, population_U: np.ndarray, source: Source, num_parameters: int) -> None:
    """A whole ledger with its opening, or none: written beside and renamed, as a kill must leave no half of it."""
    beside = path.with_name(f"{path.name}.new")
    for left in (beside, beside.with_name(f"{beside.name}-journal")):
        left.unlink(missing_ok=True)
    ledger = Ledger.create(beside)
    opening = _claim(config, population_U, source, num_parameters)
    ledger.append(opening, population_U)
    for text in _remarks(config):
        ledger.append(Deviation(opening.run, 0, text))
    ledger.close()
    rename_durably(beside, path)


def _claim(config: Config, population_U: np.ndarray, source: Source, num_parameters: int) -> RunOpened:
    privacy, users, mode = config.privacy, len(population_U), mode_of(config)
    delta = delta_for(privacy.delta or None, users)
    sampler = sampler_of(config, users)
    noise = privacy.noise_multiplier or mode.planned(Target(config, sampler, users, delta, num_parameters))
    return RunOpened(
        run=_name(config, source),
        round_=0,
        population=users,
        population_hash=ids_hash(population_U),
        sampler=sampler,
        noise_multiplier=noise,
        clipping_norm=config.federation.clipping_norm,
        expected_cohort=share_of(sampler) * users,
        delta=delta,
        budget_epsilon=privacy.budget_epsilon or privacy.epsilon or None,
        accountant=mode.accountant,
        mechanism=privacy.mode,
        neighbours="replace-one" if sampler.kind == "fixed-size" or privacy.mode == "local" else "add-or-remove",
        randomness=source.kind,
        sampling_commitment=commitment(source),
        config_hash=config.hash(),
        code_hash=whole_code_hash(),
    )


def _name(config: Config, source: Source) -> str:
    """Not the folder's: equal simulations shall have equal noise. Runs with secrets are told apart by them."""
    own = f"-{commitment(source)[:8]}" if source.kind == "secret" else ""
    return f"{config.name}-{config.hash()}{own}"


def _source(config: Config, run: RunFolder, new: bool) -> Source:
    """A resumed run needs the key it began with: else its cohorts and noise would be others, and charged again."""
    if config.privacy.randomness == "simulated":
        return Simulated(config.seed)
    secret = kept_secret(run.path / KEY, new)
    show_cohorts(run.path / KEY, secret)
    return secret


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


def summary(run: RunFolder, file: str = FILE) -> dict[str, Any] | None:
    """What was spent, from the events of this ledger of the run alone; None for a run without it."""
    if not (run.path / file).exists():
        return None
    book, findings = read_book(run.path / file)
    opening = book.opening
    if findings or opening is None:
        raise LedgerError(f"{run.path / file}: {findings[0].text if findings else 'no run-opened event'}")
    rounds = {event.round_ for event in book.events if event.releases and not isinstance(event, GraphRelease)}
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
