"""The four figures of the study, from its rows; a figure whose rows are missing is left out."""

from __future__ import annotations

import numpy as np

from experiments.pinsage.data import PROTOCOLS
from experiments.pinsage.judge import QUESTIONS
from experiments.results import Row

METRICS = [f"{question} NDCG@10" for question in QUESTIONS]


def headline(rows: list[Row]) -> dict[str, float]:
    """``datasets_at_or_above_lightgcn``: logs where PinSage's mean over seeds is no lower in both questions.

    ``importance_pooling_gain``: NDCG@10 of PinSage over that of PinSage with mean pooling, less 1; the mean over logs
    and both questions. ``inductive_…``: NDCG@10 of items held out of training, the mean over logs
    with both.
    """
    found: dict[str, float] = {}
    compared = [at_or_above(rows, dataset) for dataset in PROTOCOLS]
    if any(value is not None for value in compared):
        found["datasets_at_or_above_lightgcn"] = sum(value is True for value in compared)
    gains = [gain(rows, dataset, metric, "pinsage-mean") for dataset in PROTOCOLS for metric in METRICS]
    if known := [value for value in gains if value is not None]:
        found["importance_pooling_gain"] = round(float(np.mean(known)), 4)
    names = {"inductive_ndcg10": "inductive-pinsage", "inductive_popularity_ndcg10": "inductive-popularity"}
    own = {name: [mean(rows, dataset, model, "user NDCG@10") for dataset in PROTOCOLS] for name, model in names.items()}
    both = [place for place in range(len(PROTOCOLS)) if all(column[place] is not None for column in own.values())]
    if both:
        found |= {name: round(float(np.mean([column[place] for place in both])), 4) for name, column in own.items()}
    return found


def values(rows: list[Row], dataset: str, model: str, metric: str) -> list[float]:
    """Test values, by seed."""
    own = [row for row in rows if (row["dataset"], row["model"]) == (dataset, model)]
    return [row["test"][metric] for row in sorted(own, key=lambda row: row["seed"])]


def mean(rows: list[Row], dataset: str, model: str, metric: str) -> float | None:
    found = values(rows, dataset, model, metric)
    return float(np.mean(found)) if found else None


def at_or_above(rows: list[Row], dataset: str, model: str = "pinsage", other: str = "lightgcn") -> bool | None:
    ahead = []
    for metric in METRICS:
        ours, theirs = mean(rows, dataset, model, metric), mean(rows, dataset, other, metric)
        if ours is None or theirs is None:
            return None
        ahead.append(ours >= theirs)
    return all(ahead)


def gain(rows: list[Row], dataset: str, metric: str, without: str, whole: str = "pinsage") -> float | None:
    """Relative: what the part that ``without`` lacks adds."""
    with_part, other = mean(rows, dataset, whole, metric), mean(rows, dataset, without, metric)
    return None if with_part is None or not other else with_part / other - 1
