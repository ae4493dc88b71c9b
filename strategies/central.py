"""Central user-level privacy in rounds: who is drawn, what is noised, what is recorded, in an order that cannot fail.

Before anyone is asked: the cohort by the plan that accounts for it, and room in the budget. After the replies: clip
again, sum with weight 1 each, noise, divide by the *expected* cohort, record, and only then the next patch. Few
replies, or none, end no round: whether users answer may depend on them, so the noise is released all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, cast

import numpy as np

from fedquilt.config import Config
from fedquilt.errors import PrivacyError
from fedquilt.privacy.accountants import joint
from fedquilt.privacy.clipping import clip_rows
from fedquilt.privacy.events import AdaptiveClip, GaussianRelease
from fedquilt.privacy.mechanisms import QuantileClip, digest_of, noised_mean, require_proven, split_noise
from fedquilt.privacy.probe import require_bounded
from fedquilt.privacy.samplers import Drawn
from fedquilt.privacy.terms import WITHIN, Terms
from strategies.aggregation import make_aggregation
from strategies.independence import declared, mixing
from strategies.pipeline import Usable
from strategies.private import NOBODY, Common, OwnRows, Released, own_clipped

_PROBED_KP = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)


@dataclass(frozen=True)
class Adaptive:
    """The clipping norm follows a quantile; ``noise_multiplier``: std of the noise on the count / its bound 1/2."""

    clip: QuantileClip
    noise_multiplier: float


@dataclass
class CentralRounds(Common):
    """``noise_multiplier`` is that of a whole round: with ``adaptive``, update and count together cost no more."""

    rule: str = "mean"
    own_rows: tuple[OwnRows, ...] = ()
    adaptive: Adaptive | None = None
    _norms: dict[int, float] = field(default_factory=dict, repr=False)
    takes: ClassVar[Literal["sum", "rows", "shares"]] = "sum"

    def __post_init__(self) -> None:
        for event in self.gate.ledger.events() if self.adaptive else ():
            if isinstance(event, AdaptiveClip):
                self._norms[event.round_] = event.next_norm

    def begin(self, round_: int, absent_A: np.ndarray = NOBODY) -> np.ndarray:
        drawn = self.draw(round_)
        counted = self.adaptive.noise_multiplier if self.adaptive else None
        noise = self._update_noise if counted is None else joint(self._update_noise, counted)
        self.gate.require_admission(replace(self._event(drawn), noise_multiplier=noise))
        self.drawn = drawn
        return drawn.cohort_K

    def terms(self, round_: int) -> Terms:
        norm, told = self.norm_of(round_), self.adaptive is not None
        return Terms(self.run, "central", norm, self.noise_multiplier, self.delta, self.head, adaptive=told,
                     randomness=self.plan.source.kind)  # fmt: skip

    def row_bound(self, num_parameters: int) -> float:
        return self.clipping_norm if self.drawn is None else self.norm_of(self.drawn.round_)

    def release(self, round_: int, usable: Usable) -> Released:
        """(Σ own rows, clipped, + N(0, (z C)² I)) / expected cohort, after its event is on disk.

        ``usable``: rows of users of the round's cohort, any number of them.
        """
        drawn, source = self.of_round(round_), self.plan.source
        rows_KP = own_clipped(usable.updates_KP, self.own_rows, self.norm_of(round_))
        made_P = self.gate.release(
            self._event(drawn),
            lambda event: noised_mean(rows_KP, cast("GaussianRelease", event), source),
            drawn.cohort_K,
        )
        notes = (self._follow(drawn, usable),) if self.adaptive else ()
        return Released(made_P.astype(np.float32), digest_of(made_P), self.head, notes)

    def norm_of(self, round_: int) -> float:
        """The clipping norm of a round: the one that the last count before it led to."""
        before = [done for done in self._norms if done < round_]
        return self._norms[max(before)] if before else self.clipping_norm

    @property
    def _update_noise(self) -> float:
        if self.adaptive is None:
            return self.noise_multiplier
        return split_noise(self.noise_multiplier, self.adaptive.noise_multiplier)

    def _event(self, drawn: Drawn) -> GaussianRelease:
        norm = self.norm_of(drawn.round_)
        return drawn.release(GaussianRelease, self.run, self._update_noise, norm, rule=self.rule, **self.facts())

    def _follow(self, drawn: Drawn, usable: Usable) -> str:
        """The noisy count of rows that were not cut; -> what the round's record says of it."""
        assert self.adaptive is not None  # asked for only then
        clip, norm = self.adaptive.clip, self.norm_of(drawn.round_)
        facts: dict[str, Any] = {"quantile": clip.quantile, **self.facts()}
        event = drawn.release(AdaptiveClip, self.run, self.adaptive.noise_multiplier, 0.5, **facts)
        following = clip.next_norm_of(within(usable, norm), norm, event, self.plan.source)
        self.gate.release(replace(event, next_norm=following), lambda _: np.array([following]), drawn.cohort_K)
        self._norms[drawn.round_] = following
        return f"clipping norm {norm:.4g}, next {following:.4g}"


def within(usable: Usable, clipping_norm: float) -> np.ndarray:
    """bool [K]: what devices say of their rows; where a node says nothing, what its rows look like."""
    told_K = usable.metrics.get(WITHIN)
    if told_K is None:
        return usable.norms_K < clipping_norm * (1 - 2.0**-10)
    return np.asarray(told_K > 0.5)  # not a number counts as cut


def require_private(config: Config) -> tuple[OwnRows, ...]:
    """What the pre-rules and the rule do to a row, in order. PrivacyError where noise is not proven to cover it."""
    federation = config.federation
    if federation.weighting != "uniform":
        raise PrivacyError(
            f"federation.weighting = {federation.weighting!r}: a user whose weight is its own choice moves the sum by"
            " more than the clipping norm. Central privacy weighs all alike: set federation.weighting = 'uniform'"
        )
    if not np.isfinite(federation.clipping_norm):
        raise PrivacyError(
            "federation.clipping_norm = inf: noise needs a bound on what one user can move; set a finite clipping norm"
        )
    aggregation = make_aggregation(federation)
    steps = [
        _own_rows(f"pre-rule {name!r}", rule)
        for name, rule in zip(federation.pre_rules, aggregation.pre_rules, strict=True)
    ]
    name, rule = federation.aggregator, aggregation.rule
    if not hasattr(rule, "own_rows"):
        require_proven(name, rule.sensitivity)
    chain = (*steps, _own_rows(f"aggregator {name!r}", rule))
    _require_bounded_chain(" then ".join((*federation.pre_rules, name)), chain, federation.clipping_norm)
    return chain


def _own_rows(what: str, rule: Any) -> OwnRows:
    """The rule's method, after every row that it makes was seen to be one user's own, as far as can be tried."""
    own_rows = declared(rule)
    if own_rows is None:
        raise PrivacyError(
            f"{what}: there is no proof that one user moves its sum by at most the clipping norm, so central privacy"
            " refuses it. Take 'mean' without pre-rules, or a rule with `own_rows` (see docs/privacy.md)"
        )
    if told := mixing(own_rows):
        raise PrivacyError(
            f"{what}: its `own_rows` are not each user's own: {told}. A user who leaves then moves the sum by more than"
            " the clipping norm, which noise does not cover. Let every row depend on the same row alone, or take 'mean'"
        )
    return cast("OwnRows", own_rows)


def _require_bounded_chain(what: str, chain: tuple[OwnRows, ...], clipping_norm: float) -> None:
    """As the rounds sum it: rows clipped on arrival, every step of the chain, clipped again.

    A second look; it finds less, since rows that mix users may still have a sum that hardly moves for the rows tried.
    """

    def released_sum(updates_KP: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
        arrived_KP = clip_rows(updates_KP, clipping_norm)[0]
        return own_clipped(arrived_KP, chain, clipping_norm).sum(axis=0, dtype=np.float64)

    try:
        require_bounded(released_sum, clipping_norm, _PROBED_KP)
    except PrivacyError as error:
        raise PrivacyError(f"{what}: {error}") from None
