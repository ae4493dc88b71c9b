"""Where a strategy is extended: aggregators (rules on updates), pre-rules before them, and server optimizers.

A rule is a frozen dataclass plus a pure call. One rule a file, registered by name in ``strategies/aggregators/``,
``strategies/pre_rules/`` or ``strategies/optimizers/``; elsewhere it is named in the configuration as
``"package.module:Rule"``. What a rule declares of itself is read by ``strategies.facts``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch

from fedquilt.errors import ConfigError, FederationError, FedquiltError, MissingContextError, TooManyByzantineError
from fedquilt.registry import Registry
from fedquilt.types import PatchSpec
from strategies.parameters import checked, require_entry

AGGREGATORS = Registry("aggregator", "strategies.aggregators")
PRE_RULES = Registry("pre-rule", "strategies.pre_rules")
OPTIMIZERS = Registry("server optimizer", "strategies.optimizers")

State = Mapping[str, np.ndarray]
"""Named arrays that a rule carries from round to round; what a checkpoint stores."""

FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class RoundContext:
    """What may be known of a round besides its updates. Every field has a value that says "not known".

    client_ids_K int64, in the order of the rows; nodes_K: which supernode sent each row; spec: the layout of P;
    root_update_P: the update that the cloud computed from data of its own (FLTrust).
    """

    run_seed: int = 0
    round_: int = 0
    client_ids_K: np.ndarray | None = None
    nodes_K: np.ndarray | None = None
    spec: PatchSpec | None = None
    root_update_P: torch.Tensor | None = None


class Aggregator(Protocol):
    """K users' updates -> one update. Pure: the input is not written to, and the same input gives the same bits.

    ``sensitivity``: L2 distance by which ``update_P`` can move when one user's row is replaced, in units of
    clipping_norm / K; None where no bound is proven (central privacy refuses the rule).
    ``breakdown``: the share of users who, sending anything, still leave the result bounded; 0 for a mean.

    Optional, and each with a default in ``strategies.facts``: ``source``, ``cost``, ``translation``, ``scale``,
    ``honours_weights``, ``tight``, ``needs(num_byzantine) -> smallest K``, ``tolerates(num_users) -> largest f``.
    ``needs_root = True``: the context of a round then holds ``root_update_P``, computed for such rules only.
    ``needs_ids = True``: the rule keeps a history by client id. It is refused behind a pre-rule that ``mixes``.

    Optional methods:

    - ``next_state(updates_KP, weights_K, state) -> state`` of a rule that carries state from round to round; or
      ``step(updates_KP, weights_K, state) -> (update_P, state)``, where one pass gives both.
    - ``row_weights(updates_KP, weights_K, state) -> weights_K`` of a rule whose result is weights_K @ updates_KP: who
      counted for how much. 0 is a rejection.
    - ``in_round(context) -> rule``: the rule as it acts in one round, where it needs to know more than the updates.
    - ``own_rows(updates_KP) -> rows_KP`` of a rule whose result, with equal weights, is the mean of rows each of which
      depends on the same row of the input alone and is no longer than it: then a user moves their sum by at most
      clipping_norm, and central privacy can noise it. None where that does not hold for the rule's parameters. Defined
      for K = 0 too. ``strategies.central`` refuses rules and pre-rules without it, and where it is seen to mix users.
    - ``note(num_users) -> str``: what the record of the round should say, "" for nothing; such as an approximation.
    """

    sensitivity: float | None
    breakdown: float

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        """float32 [K, P], float32 [K] that sum to 1, state -> float32 [P]. Rows are clipped, in order of client id."""


class PreRule(Protocol):
    """Rows before the rule sees them: mixed, clipped or fewer. Pure, as a rule is.

    ``source`` and ``cost`` are texts. ``needs(num_byzantine)`` as in a rule. Optional: ``overwriting``, of the same
    signature and result, which may write into the rows that it is given; called where an earlier pre-rule made them.
    ``rejects = True``: who is left out is so for what its row says, and is charged with it where suspicion is on; a
    draw that leaves out rows, such as a cap's, does not say it. ``mixes = True``: rows that come out are made of
    several users' and are no single user's, so the context names neither clients nor supernodes any more.
    """

    def __call__(
        self, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
    ) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
        """-> (updates [K', P], weights [K'] that sum to 1, the context for these rows)."""


class ServerOptimizer(Protocol):
    """Aggregated updates -> steps of the patch (Reddi et al. 2021, arXiv:2003.00295). Pure."""

    def initial_state(self, num_parameters: int) -> State: ...

    def step(self, state: State, update_P: np.ndarray) -> tuple[State, np.ndarray]:
        """(state, update [P]) -> (next state, what to add to the patch [P]), float32."""


def require_spec(rule: Any, context: RoundContext) -> PatchSpec:
    """MissingContextError without the layout of the patch."""
    if context.spec is None:
        raise missing(rule, "the layout of the patch", "run it in a federation")
    return context.spec


def require_users(rule: Any, updates_KP: torch.Tensor) -> int:
    """K. Called first by every rule of ours.

    TooManyByzantineError where K is below ``rule.needs(f)``; FederationError for what is not a float matrix.
    """
    if updates_KP.ndim != 2 or updates_KP.dtype not in FLOATS:
        raise FederationError(
            f"{type(rule).__name__} takes float32 or float64 [K, P]; got {updates_KP.dtype} {list(updates_KP.shape)}:"
            " convert it"
        )
    k, f = len(updates_KP), getattr(rule, "num_byzantine", 0)
    needed = smallest_k(rule, f)
    if k < needed:
        raise TooManyByzantineError(
            f"{type(rule).__name__} needs K >= {needed} users to withstand f={f} Byzantine ones; got K={k}, f={f}:"
            " raise federation.cohort_size, lower num_byzantine, or set federation.fallback_aggregator"
        )
    return k


def smallest_k(rule: Any, num_byzantine: int) -> int:
    """What the rule declares that it needs; at least one user."""
    needs = getattr(rule, "needs", None)
    return max(int(needs(num_byzantine)) if needs else 1, 1)


def in_round(rule: Aggregator, context: RoundContext) -> Aggregator:
    """The rule as it acts in this round. MissingContextError for a history by client id where rows have none."""
    if getattr(rule, "needs_ids", False) and context.client_ids_K is None:
        raise missing(rule, "to know whose each row is", "take out the pre-rule that mixes users, or take another rule")
    bind = getattr(rule, "in_round", None)
    return bind(context) if bind else rule


def missing(rule: Any, what: str, remedy: str) -> MissingContextError:
    return MissingContextError(f"{type(rule).__name__} needs {what}, and nobody gave it: {remedy}")


def apply_rule(
    rule: Aggregator,
    updates_KP: torch.Tensor,
    weights_K: torch.Tensor,
    state: State,
    context: RoundContext | None = None,
) -> tuple[np.ndarray, State]:
    """(update_P float32, next state). Rows that come in are finite, so whatever is wrong here is the rule's doing.

    FederationError, naming the rule and what it returned, where it raises or keeps to another contract than ours;
    TooManyByzantineError and MissingContextError as the rule raised them.
    """
    name = f"aggregator {type(rule).__module__}:{type(rule).__qualname__}"
    try:
        update_P, next_state = _call(in_round(rule, context or RoundContext()), updates_KP, weights_K, state)
    except FedquiltError:
        raise
    except Exception as error:
        raise FederationError(f"{name} raised {type(error).__name__}: {error}") from error
    expected = f"expected float32 [{updates_KP.shape[1]}]; mend the rule, then resume the run"
    if not isinstance(update_P, torch.Tensor):
        raise FederationError(f"{name} returned {type(update_P).__name__} {update_P!r:.80}, {expected}")
    if update_P.dtype != torch.float32 or update_P.shape != updates_KP.shape[1:]:
        raise FederationError(f"{name} returned {update_P.dtype} {list(update_P.shape)}, {expected}")
    if bad := int((~torch.isfinite(update_P)).sum()):
        raise FederationError(f"{name} returned {bad} numbers that are not finite of {len(update_P)}, {expected}")
    if not isinstance(next_state, Mapping) or not all(isinstance(array, np.ndarray) for array in next_state.values()):
        raise FederationError(f"{name}: next_state returned {next_state!r:.80}, expected named numpy arrays")
    return update_P.detach().numpy(), next_state


def _call(
    rule: Aggregator, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State
) -> tuple[torch.Tensor, State]:
    both, carry_on = getattr(rule, "step", None), getattr(rule, "next_state", None)
    if both:
        return cast("tuple[torch.Tensor, State]", both(updates_KP, weights_K, state))
    update_P = rule(updates_KP, weights_K, state)
    return update_P, carry_on(updates_KP, weights_K, state) if carry_on else state


def apply_pre_rules(
    pre_rules: tuple[PreRule, ...], updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
    """In the order in which they are configured. No pre-rules: the rows themselves. Given rows are not written to."""
    given_KP, rows = updates_KP, (updates_KP, weights_K, context)
    for pre_rule in pre_rules:
        rows = apply_pre_rule(pre_rule, *rows, given_KP)
    return rows


def apply_pre_rule(
    pre_rule: PreRule, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext, given_KP: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
    """One of several. ``given_KP``: rows of the caller's, which may not be written to."""
    made_here = not np.may_share_memory(updates_KP.detach().numpy(), given_KP.detach().numpy())
    call = getattr(pre_rule, "overwriting", pre_rule) if made_here else pre_rule
    return call(updates_KP, weights_K, context)


def make_aggregator(name: str, options: Mapping[str, Any], where: str = "federation.aggregator_options") -> Aggregator:
    return _make(AGGREGATORS, name, options, where)


def make_pre_rules(names: tuple[str, ...], options: Mapping[str, Mapping[str, Any]]) -> tuple[PreRule, ...]:
    """ConfigError for options of a pre-rule that is not in the list."""
    if strays := [name for name in options if name not in names]:
        raise ConfigError(
            f"federation.pre_rule_options has {strays[0]!r}, which federation.pre_rules = {list(names)} does not list"
        )
    where = "federation.pre_rule_options"
    return tuple(_make(PRE_RULES, name, options.get(name, {}), f"{where}.{name}") for name in names)


def make_optimizer(name: str, learning_rate: float, options: Mapping[str, Any]) -> ServerOptimizer:
    return _make(OPTIMIZERS, name, {"learning_rate": learning_rate, **options}, "server_optimizer.options")


def _make(registry: Registry, name: str, options: Mapping[str, Any], where: str) -> Any:
    rule = registry[name]
    require_entry(registry.kind, name, rule)
    given = checked(registry.kind, name, rule, options, where)
    try:
        return rule(**given)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{registry.kind} {name!r} with {where} = {dict(options)}: {error}") from None


def require_count(name: str, value: Any, least: int = 0) -> None:
    """ValueError that names the parameter: what ``__post_init__`` of a rule calls for a whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def require_number(name: str, value: Any, above: float = 0.0) -> None:
    """ValueError that names the parameter: a finite number above ``above``."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not above < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above {above:g}, got {value!r}")
