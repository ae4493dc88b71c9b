"""What a round does with its usable updates: pre-rules, then the aggregator, or the fallback where it has too few."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fedquilt.config import FederationConfig
from fedquilt.errors import ConfigError, FederationError, TooManyByzantineError
from strategies.rules import (
    Aggregator,
    PreRule,
    RoundContext,
    State,
    apply_pre_rule,
    apply_pre_rules,
    apply_rule,
    in_round,
    make_aggregator,
    make_pre_rules,
)


@dataclass(frozen=True)
class Aggregation:
    """``fallback`` None: a round with too few users for the aggregator, or for a pre-rule, fails."""

    rule: Aggregator
    pre_rules: tuple[PreRule, ...] = ()
    fallback: Aggregator | None = None
    fallback_name: str = ""


@dataclass(frozen=True)
class Aggregated:
    """``notes``: what the round's record says about how it was done. ``screened_J``: client ids that pre-rules rejected
    for what their rows say; where a pre-rule's rows are no single user's, those of the ones before it."""

    update_P: np.ndarray
    state: State
    notes: tuple[str, ...] = ()
    screened_J: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))


def make_aggregation(federation: FederationConfig) -> Aggregation:
    """ConfigError for a rule that cannot be made, or not behind these pre-rules; the fallback too."""
    name = federation.fallback_aggregator
    aggregation = Aggregation(
        make_aggregator(federation.aggregator, federation.aggregator_options),
        make_pre_rules(federation.pre_rules, federation.pre_rule_options),
        make_aggregator(name, federation.fallback_options, "federation.fallback_options") if name else None,
        name,
    )
    _require_ids(federation, aggregation)
    return aggregation


def _require_ids(federation: FederationConfig, aggregation: Aggregation) -> None:
    """ConfigError for a history by client id behind a pre-rule whose rows are no single user's."""
    pairs = zip(federation.pre_rules, aggregation.pre_rules, strict=True)
    mixing = next((name for name, rule in pairs if getattr(rule, "mixes", False)), "")
    for key, rule in (("aggregator", aggregation.rule), ("fallback_aggregator", aggregation.fallback)):
        if mixing and getattr(rule, "needs_ids", False):
            raise ConfigError(
                f"federation.{key} = {getattr(federation, key)!r} keeps a history by client id, and the rows that"
                f" pre-rule {mixing!r} leaves are no single user's: take {mixing!r} out of federation.pre_rules, or"
                " another rule"
            )


def needs_root(aggregation: Aggregation) -> bool:
    """Whether a rule or pre-rule in it takes the update that the cloud computes from data of its own."""
    parts = (aggregation.rule, *aggregation.pre_rules, aggregation.fallback)
    return any(getattr(part, "needs_root", False) for part in parts)


def aggregate(
    aggregation: Aggregation, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State, context: RoundContext
) -> Aggregated:
    """The aggregator's update of the rows that the pre-rules leave.

    Too few users for it, or for a pre-rule: the fallback's, of the rows that all pre-rules leave that have enough, so
    that no cap or screen is lost with the rule; the aggregator's state stays. The note says which, and why.
    FederationError where no update comes of it.
    """
    prepared = _prepare(aggregation.pre_rules, updates_KP, weights_K, context)
    try:
        if prepared.failed:
            raise prepared.failed[0]
        update_P, next_state = apply_rule(aggregation.rule, *prepared.rows, state, prepared.context)
        notes = _notes(aggregation.rule, len(prepared.rows[0]))
        return Aggregated(update_P, next_state, notes, prepared.screened_J)
    except TooManyByzantineError as error:
        if aggregation.fallback is None or not len(updates_KP):
            raise
        update_P, _ = apply_rule(aggregation.fallback, *prepared.rows, {}, prepared.context)
        notes = (f"fell back to {aggregation.fallback_name!r}: {error}",)
        return Aggregated(update_P, state, notes, prepared.screened_J)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """What pre-rules leave: (updates, weights) and their context; ``failed``: of those with too few users, skipped.

    ``screened_J``: see ``Aggregated``.
    """

    rows: tuple[torch.Tensor, torch.Tensor]
    context: RoundContext
    screened_J: np.ndarray
    failed: tuple[TooManyByzantineError, ...] = ()


def _prepare(
    pre_rules: tuple[PreRule, ...], updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
) -> _Prepared:
    rows, failed, screened = (updates_KP, weights_K, context), [], [np.empty(0, np.int64)]
    for pre_rule in pre_rules:
        before_K = rows[2].client_ids_K
        try:
            rows = apply_pre_rule(pre_rule, *rows, updates_KP)
        except TooManyByzantineError as error:
            failed.append(error)
        after_K = rows[2].client_ids_K
        if getattr(pre_rule, "rejects", False) and before_K is not None and after_K is not None:
            screened.append(np.setdiff1d(before_K, after_K))
    return _Prepared(rows[:2], rows[2], np.concatenate(screened), tuple(failed))


def counted(
    aggregation: Aggregation, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State, context: RoundContext
) -> tuple[np.ndarray, np.ndarray] | None:
    """(client ids [J], the weights that the rule gives them [J]) of the rows that pre-rules left; ``state``: before it.

    None where nobody can tell: a rule without ``row_weights``, rows that are no single user's, a fallback.
    """
    if not hasattr(aggregation.rule, "row_weights") or not len(updates_KP):
        return None
    try:
        rows_KP, weights, seen = apply_pre_rules(aggregation.pre_rules, updates_KP, weights_K, context)
        rule: Any = in_round(aggregation.rule, seen)
        counted_J = rule.row_weights(rows_KP, weights, state)
    except FederationError:
        return None
    ids_J = seen.client_ids_K
    return None if ids_J is None or len(ids_J) != len(counted_J) else (ids_J, counted_J.numpy())


def _notes(rule: Aggregator, num_users: int) -> tuple[str, ...]:
    tell = getattr(rule, "note", None)
    note = tell(num_users) if tell else ""
    if not isinstance(note, str):
        raise FederationError(f"aggregator {type(rule).__qualname__}: note returned {note!r:.80}, expected a text")
    return (note,) if note else ()
