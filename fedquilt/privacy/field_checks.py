"""What a field of an event may hold, by its name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

from fedquilt.privacy.sampling import Sampler, require

UNIT = "user"
Neighbours = Literal["add-or-remove", "replace-one"]
Randomness = Literal["secret", "simulated"]
NORM_GRID = 16  # shares of the clipping norm that users are charged by: few, so that ledgers hold few different costs
_NORM_SHARES = frozenset(step / NORM_GRID for step in range(1, NORM_GRID + 1))


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value > 0


def _not_negative(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "noise_multiplier": (_not_negative, "finite and not negative"),
    "clipping_norm": (_positive, "finite and positive: noise needs a bound on a user's row"),
    "epsilon": (_not_negative, "finite and not negative"),
    "expected_cohort": (_positive, "finite and positive"),
    "cohort_size": (lambda value: isinstance(value, int) and value >= 0, "a count"),
    "participations": (lambda value: isinstance(value, int) and value >= 0, "a count"),
    "population": (lambda value: isinstance(value, int) and value >= 1, "a count of at least one user"),
    "delta": (lambda value: _positive(value) and value < 1, "in (0, 1)"),
    "budget_epsilon": (lambda value: value is None or _positive(value), "finite and positive, or none"),
    "unit": (lambda value: value == UNIT, f"{UNIT!r}: no other privacy unit is claimed (nodes and records are not)"),
    "neighbours": (lambda value: value in get_args(Neighbours), f"one of {get_args(Neighbours)}"),
    "randomness": (lambda value: value in get_args(Randomness), f"one of {get_args(Randomness)}"),
    "norm_share": (lambda value: value in _NORM_SHARES, f"one of 1/{NORM_GRID}, 2/{NORM_GRID} .. 1"),
    "quantile": (lambda value: _positive(value) and value < 1, "in (0, 1)"),
    "next_norm": (_not_negative, "finite and not negative"),
    "sensitivity": (_positive, "finite and positive"),
    "granularity": (_positive, "finite and positive"),
    "variance": (_positive, "finite and positive"),
    "rounds": (lambda value: isinstance(value, int) and value >= 1, "at least 1"),
    "sampler": (lambda value: isinstance(value, get_args(Sampler)), "Poisson, FixedSize, NoSampling or FixedOrder"),
}


def require_known(name: str, value: Any) -> None:
    check, meaning = _CHECKS.get(name, (None, ""))
    if check is not None:
        require(check(value), f"{name} must be {meaning}; got {value!r}")
