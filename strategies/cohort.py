"""Who takes part in a round: drawn over stable client ids, so that neither node ids nor the number of nodes matter."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fedquilt.seeds import generator_for, key_for

USE = "cohort"


@dataclass(frozen=True)
class Draw:
    """One use of randomness by the cloud, as the run's ledger records it."""

    round_: int
    use: str
    key: int
    digest: str


Witness = Callable[[Draw], None]


def draw_cohort(
    run_seed: int, round_: int, population_U: np.ndarray, size: int, use: str = USE
) -> tuple[np.ndarray, Draw]:
    """Fixed size, without replacement, uniform. ``population_U`` is sorted, and so is the cohort."""
    generator = generator_for(run_seed, round_, 0, use)
    size = min(size, len(population_U))
    chosen = generator.choice(len(population_U), size, replace=False, shuffle=False)
    cohort_K = np.sort(population_U[chosen])
    return cohort_K, Draw(round_, use, key_for(run_seed, round_, 0, use), ids_digest(cohort_K))


def ids_digest(client_ids: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(client_ids, np.int64).tobytes()).hexdigest()[:16]
