"""By privacy mode: what is possible, how much noise a target takes, and the rounds that carry it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedquilt.config import Config
from fedquilt.errors import PrivacyError
from fedquilt.privacy.book import read_book
from fedquilt.privacy.events import FixedOrder, MatrixOpened, RunOpened, Sampler
from fedquilt.privacy.gate import Gate
from fedquilt.privacy.mechanisms import QuantileClip, split_noise
from fedquilt.privacy.mode_plans import Setting, noise_for
from fedquilt.privacy.participations import Participations
from fedquilt.privacy.plan import plan_noise, sampler_for
from fedquilt.privacy.samplers import SamplingPlan
from fedquilt.privacy.settings import why_no_norms
from strategies.central import Adaptive, CentralRounds, require_private
from strategies.correlated import CorrelatedRounds
from strategies.distributed import DistributedRounds
from strategies.local import LocalRounds
from strategies.private import PrivateRounds

_UNTRUSTED = ("none", "fixed-order")
_SUM = (
    "the guarantee is for who sees the sum of a round: a node sends one sum of its users' shares, and the cloud sees"
    " each node's; hiding these from the cloud takes secure aggregation. Devices that leave out their share of noise"
    " count as dropouts. A removed user is one whose row is zero and who still adds a share"
)
_LOCAL = "that a device declined, and why, is not covered by its noise: only updates that are not finite are declined"


@dataclass(frozen=True)
class Target:
    """What noise is planned for: ``config.privacy.epsilon`` over the configured rounds of P parameters."""

    config: Config
    sampler: Sampler
    users: int
    delta: float
    num_parameters: int

    @property
    def rounds(self) -> int:
        return max(self.config.federation.rounds, 1)

    @property
    def epsilon(self) -> float:
        return self.config.privacy.epsilon


@dataclass(frozen=True)
class _Run:
    """What rounds are made from: the claim on the ledger, who is drawn, the way out, the ledger's file, P."""

    opening: RunOpened
    plan: SamplingPlan
    gate: Gate
    path: Path
    num_parameters: int


@dataclass(frozen=True)
class Mode:
    """``accountant`` of its runs; ``remarks``: what every statement tells of it."""

    require: Callable[[Config], None]
    planned: Callable[[Target], float]
    rounds: Callable[[Config, _Run], PrivateRounds]
    accountant: str = "rdp"
    remarks: tuple[str, ...] = ()


def mode_of(config: Config) -> Mode:
    return MODES[config.privacy.mode]


def make_rounds(
    config: Config, opening: RunOpened, plan: SamplingPlan, gate: Gate, path: Path, num_parameters: int
) -> PrivateRounds:
    return mode_of(config).rounds(config, _Run(opening, plan, gate, path, num_parameters))


def sampler_of(config: Config, users: int) -> Sampler:
    size = min(config.federation.cohort_size, users)
    if config.privacy.sampler == "fixed-order":
        return FixedOrder(max(users // size, 1))
    kind = {"fixed": "fixed-size"}.get(config.privacy.sampler, config.privacy.sampler)
    return sampler_for(kind, size, users)


def require_mode(config: Config) -> None:
    """PrivacyError for what the mode cannot vouch for, whatever the population."""
    privacy, federation = config.privacy, config.federation
    if bool(privacy.noise_multiplier) == bool(privacy.epsilon):
        raise PrivacyError(
            f"privacy.mode = {privacy.mode!r} takes privacy.noise_multiplier or privacy.epsilon (the noise is then"
            f" planned), exactly one of them above 0; got {privacy.noise_multiplier:g} and {privacy.epsilon:g}"
        )
    if bool(privacy.population) != bool(privacy.population_epsilon):
        raise PrivacyError("privacy.population and privacy.population_epsilon go together: a folder and its budget")
    if privacy.quantile and privacy.mode != "central":
        raise PrivacyError(f"privacy.quantile is for mode 'central'; mode {privacy.mode!r} keeps its clipping norm")
    if privacy.device_norms and (why := why_no_norms(privacy)):
        raise PrivacyError(why)
    if federation.weighting != "uniform":
        raise PrivacyError(
            f"federation.weighting = {federation.weighting!r}: a user whose weight is its own choice moves the sum by"
            " more than the clipping norm. Privacy weighs all alike: set federation.weighting = 'uniform'"
        )
    if not np.isfinite(federation.clipping_norm):
        raise PrivacyError(
            "federation.clipping_norm = inf: noise needs a bound on what one user can move; set a finite clipping norm"
        )
    mode_of(config).require(config)


# --- central ---


def _require_central(config: Config) -> None:
    require_private(config)
    if config.privacy.sampler == "fixed-order":
        raise PrivacyError("privacy.sampler = 'fixed-order' is for modes local, distributed and dp-ftrl")


def _central_noise(target: Target) -> float:
    return plan_noise(target.epsilon, target.sampler, target.rounds, target.users, target.delta).noise_multiplier


def _central_rounds(config: Config, run: _Run) -> CentralRounds:
    named = config.federation.aggregator
    rule = "mean" if named == "weighted-mean" else named  # all weights are equal
    common = _common(run)
    return CentralRounds(*common, rule, require_private(config), _adaptive(config, run.opening))


def _adaptive(config: Config, opening: RunOpened) -> Adaptive | None:
    privacy = config.privacy
    if not privacy.quantile:
        return None
    noise = privacy.quantile_noise or opening.expected_cohort / 10  # of bits bounded by 1/2: a std of cohort / 20
    split_noise(opening.noise_multiplier, noise)
    return Adaptive(QuantileClip(privacy.quantile, privacy.quantile_rate), noise)


# --- local ---


def _nothing(config: Config) -> None:
    return None


def _local_rounds(config: Config, run: _Run) -> LocalRounds:
    return LocalRounds(*_common(run), participations=_participations(run))


# --- distributed ---


def _require_distributed(config: Config) -> None:
    federation = config.federation
    if federation.aggregator not in ("mean", "weighted-mean") or federation.pre_rules:
        raise PrivacyError(
            f"privacy.mode = 'distributed': the cloud sees sums only, so the aggregator is 'mean' without pre-rules;"
            f" got {federation.aggregator!r} with {federation.pre_rules or 'none'}"
        )
    _require_untrusted(config)


def _distributed_rounds(config: Config, run: _Run) -> DistributedRounds:
    cohorts = [run.plan.draw(round_).cohort_K for round_ in range(_turns(run.plan.sampler))]
    if not all(map(len, cohorts)):
        raise PrivacyError(
            f"{len(cohorts)} groups for {len(run.plan.population_U)} users leave one without users, whose round would"
            " have no noise: raise federation.cohort_size"
        )
    return DistributedRounds(
        *_common(run),
        participations=_participations(run),
        num_parameters=run.num_parameters,
        noise=config.privacy.noise,
        dropout_margin=config.privacy.dropout_margin,
    )


# --- DP-FTRL ---


def _require_correlated(config: Config) -> None:
    require_private(config)
    _require_untrusted(config)


def opened_mechanism(config: Config, run: str, sampler: Sampler, noise_multiplier: float) -> MatrixOpened:
    """All configured rounds; a user takes part in one of as many as there are groups."""
    setting = setting_of(Target(config, sampler, 1, 0.5, 1))
    return replace(
        setting.matrix(max(config.federation.rounds, 1)),
        run=run,
        noise_multiplier=noise_multiplier,
        clipping_norm=config.federation.clipping_norm,
        randomness=config.privacy.randomness,
    )


def _correlated_rounds(config: Config, run: _Run) -> CorrelatedRounds:
    opening = run.opening
    opened = opened_mechanism(config, opening.run, opening.sampler, opening.noise_multiplier)
    return CorrelatedRounds(*_common(run), opened=opened, own_rows=require_private(config))


# --- shared ---


def _mode_noise(target: Target) -> float:
    """As ``fedquilt privacy plan`` tells beforehand."""
    return noise_for(setting_of(target), target.epsilon, target.rounds)


def setting_of(target: Target) -> Setting:
    privacy = target.config.privacy
    return Setting(
        privacy.mode, target.sampler, target.users, target.delta, target.num_parameters, privacy.noise,
        privacy.dropout_margin, privacy.correlation, privacy.bands,
    )  # fmt: skip


def _common(run: _Run) -> tuple[str, SamplingPlan, Gate, float, float, float]:
    opening = run.opening
    return opening.run, run.plan, run.gate, opening.noise_multiplier, opening.clipping_norm, opening.delta


def _participations(run: _Run) -> Participations:
    book, _ = read_book(run.path)
    return Participations(run.plan.population_U, book.events, book.cohorts)


def _turns(sampler: Sampler) -> int:
    return sampler.groups if isinstance(sampler, FixedOrder) else 1


def _require_untrusted(config: Config) -> None:
    if config.privacy.sampler not in _UNTRUSTED:
        raise PrivacyError(
            f"privacy.mode = {config.privacy.mode!r} claims nothing of how users are drawn, so privacy.sampler ="
            f" {config.privacy.sampler!r} would promise too much: set 'fixed-order' (groups take turns) or 'none'"
        )


MODES: dict[str, Mode] = {
    "central": Mode(_require_central, _central_noise, _central_rounds),
    "local": Mode(_nothing, _mode_noise, _local_rounds, "gdp", (_LOCAL,)),
    "distributed": Mode(_require_distributed, _mode_noise, _distributed_rounds, "rdp", (_SUM,)),
    "dp-ftrl": Mode(_require_correlated, _mode_noise, _correlated_rounds, "gdp"),
}
