"""Skew screening: rows whose item biases are not those of a loss over clicks lose their place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from strategies.rules import PRE_RULES, RoundContext, require_number, require_spec, require_users
from strategies.screened import only

_BIAS = "item_bias"
_AT_ONCE = 256  # rows


@PRE_RULES.register("skew-screening")
@dataclass(frozen=True)
class SkewScreening:
    """Left out is a row x whose item biases have a skewness about zero, mean(b³) / mean(b²)^1.5, below ``least``.
    O(K·I), I items.

    A step down a softmax loss adds rate · (y_i - p_i) to the bias of item i: much to the few items that were clicked, a
    little less than nothing to all others, so that b is skewed upwards: n clicks among I items, p = n / I, give about
    (1 - 2p) / sqrt(p (1 - p)), which is below 3 from p = .084 on. The negative of such a step is skewed downwards,
    noise and what is sewn together from noise and others' means not at all. This holds user by user, whatever the
    others send, and does not take for a liar who likes what nobody else likes. Passes: who leaves the biases as they
    are, or adds a large one, and whoever sends a step down such a loss over false clicks.
    Rows without a bias that differs from 0 stay. Where more than half of a round is below, its loss is another one,
    and all stay. A patch without item biases passes. MissingContextError without a patch spec.
    """

    least: float = 3.0

    source = "fedquilt"
    cost = "K·I"
    rejects = True

    def __post_init__(self) -> None:
        require_number("least", self.least, above=-math.inf)

    def __call__(
        self, updates_KP: torch.Tensor, weights_K: torch.Tensor, context: RoundContext
    ) -> tuple[torch.Tensor, torch.Tensor, RoundContext]:
        k = require_users(self, updates_KP)
        spec = require_spec(self, context)
        if _BIAS not in spec.slices:
            return updates_KP, weights_K, context
        below_K = skewness(updates_KP[:, spec.slices[_BIAS]]) < self.least
        if not 0 < 2 * int(below_K.sum()) <= k:
            return updates_KP, weights_K, context
        return only(torch.nonzero(~below_K).flatten(), updates_KP, weights_K, context)


def skewness(values_KI: torch.Tensor) -> torch.Tensor:
    """float64 [K]: mean(v³) / mean(v²)^1.5 of each row, about zero, between -sqrt(I) and sqrt(I); NaN for zeros."""
    return torch.cat([_skewness(values_BI) for values_BI in values_KI.split(_AT_ONCE)])


def _skewness(values_BI: torch.Tensor) -> torch.Tensor:
    largest_B1 = values_BI.abs().amax(dim=1, keepdim=True).to(torch.float64)
    units_BI = values_BI / largest_B1  # so that no power is too small or too large for a float
    squares_BI = units_BI * units_BI
    return (squares_BI * units_BI).mean(dim=1) / squares_BI.mean(dim=1) ** 1.5
