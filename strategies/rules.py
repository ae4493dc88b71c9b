"""The two places where a strategy is extended: aggregators (rules on updates) and server optimizers.

A rule is a frozen dataclass plus a pure call. One rule a file, registered by name in ``strategies/aggregators/`` or
``strategies/optimizers/``; elsewhere it is named in the configuration as ``"package.module:Rule"``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

from fedquilt.errors import ConfigError, FederationError
from fedquilt.registry import Registry

AGGREGATORS = Registry("aggregator", "strategies.aggregators")
OPTIMIZERS = Registry("server optimizer", "strategies.optimizers")

State = Mapping[str, np.ndarray]
"""Named arrays that a rule carries from round to round; what a checkpoint stores."""


class Aggregator(Protocol):
    """K users' updates -> one update. Pure: the input is not written to, and the same input gives the same bits.

    ``sensitivity``: L2 distance by which ``update_P`` can move when one user's row is replaced, in units of
    clipping_norm / K; None where no bound is proven (central privacy refuses the rule).
    ``breakdown``: the share of users who, sending anything, still leave the result bounded; 0 for a mean.

    A rule that carries state from round to round also has ``next_state(updates_KP, weights_K, state) -> state``.
    """

    sensitivity: float | None
    breakdown: float

    def __call__(self, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State) -> torch.Tensor:
        """float32 [K, P], float32 [K] that sum to 1, state -> float32 [P]. Rows are clipped, in order of client id."""


class ServerOptimizer(Protocol):
    """Aggregated updates -> steps of the patch (Reddi et al. 2021, arXiv:2003.00295). Pure."""

    def initial_state(self, num_parameters: int) -> State: ...

    def step(self, state: State, update_P: np.ndarray) -> tuple[State, np.ndarray]:
        """(state, update [P]) -> (next state, what to add to the patch [P]), float32."""


def apply_rule(
    rule: Aggregator, updates_KP: torch.Tensor, weights_K: torch.Tensor, state: State
) -> tuple[np.ndarray, State]:
    """(update_P float32, next state). Rows that come in are finite, so whatever is wrong here is the rule's doing.

    FederationError, naming the rule and what it returned, where it raises or keeps to another contract than ours.
    """
    name = f"aggregator {type(rule).__module__}:{type(rule).__qualname__}"
    try:
        update_P = rule(updates_KP, weights_K, state)
        carry_on = getattr(rule, "next_state", None)
        next_state = carry_on(updates_KP, weights_K, state) if carry_on else state
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


def make_aggregator(name: str, options: Mapping[str, Any]) -> Aggregator:
    return _make(AGGREGATORS, name, options, "federation.aggregator_options")


def make_optimizer(name: str, learning_rate: float, options: Mapping[str, Any]) -> ServerOptimizer:
    return _make(OPTIMIZERS, name, {"learning_rate": learning_rate, **options}, "server_optimizer.options")


def _make(registry: Registry, name: str, options: Mapping[str, Any], where: str) -> Any:
    rule = registry[name]
    try:
        return rule(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{registry.kind} {name!r} with {where} = {dict(options)}: {error}") from None
