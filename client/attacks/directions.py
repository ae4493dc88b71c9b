"""Perturbation directions p of Shejwalkar and Houmansadr 2021, each pointing away from the honest mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from client.attacks.vectors import mean, std, unit


def inverse_unit(rows_KP: np.ndarray) -> np.ndarray:
    return -unit(mean(rows_KP))


def inverse_std(rows_KP: np.ndarray) -> np.ndarray:
    return -std(rows_KP)


def inverse_sign(rows_KP: np.ndarray) -> np.ndarray:
    return -np.sign(mean(rows_KP))


DIRECTIONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "unit": inverse_unit,
    "std": inverse_std,
    "sign": inverse_sign,
}


def direction(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """ValueError, which names the choices, for another name."""
    if name not in DIRECTIONS:
        raise ValueError(f"direction must be one of {', '.join(DIRECTIONS)}, got {name!r}")
    return DIRECTIONS[name]
