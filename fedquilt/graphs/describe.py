"""What a log looks like, as plain numbers for ``fedquilt data``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np

from fedquilt.graphs.log import InteractionLog

_QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}


def describe(log: InteractionLog) -> dict[str, Any]:
    """JSON-ready. Counts, density, clicks per user and per item, how unequal popularity is, time, domains, features."""
    return {
        "name": log.name,
        "hash": log.hash,
        "users": log.num_users,
        "items": log.num_items,
        "clicks": len(log),
        "density": len(log) / max(log.num_users * log.num_items, 1),
        "clicks_per_user": _spread(np.diff(log.offsets)),
        "clicks_per_item": _spread(log.popularity_I),
        "items_without_clicks": int((log.popularity_I == 0).sum()),
        "head_share": head_share(log.popularity_I),
        "popularity_gini": gini(log.popularity_I),
        "time": _time(log),
        "domains": _domains(log),
        "features": 0 if log.item_features_IF is None else log.item_features_IF.shape[1],
        "ratings": log.ratings_C is not None,
        "rows_read": log.report.rows_read,
        "duplicates_dropped": log.report.duplicates_dropped,
        "one_item_users": log.report.one_item_users,
        "notes": list(log.report.notes),
    }


def head_share(popularity_I: np.ndarray, head: float = 0.2) -> float:
    """Share of the clicks that go to the most popular ``head`` of all items (rounded up)."""
    top = np.sort(popularity_I)[::-1][: int(np.ceil(head * len(popularity_I)))]
    return float(top.sum() / max(popularity_I.sum(), 1))


def gini(counts_I: np.ndarray) -> float:
    """Gini coefficient: 0 where all are equal, (I - 1) / I where one item has everything."""
    total, size = counts_I.sum(), len(counts_I)
    if total == 0:
        return 0.0
    ranks = np.arange(1, size + 1)
    return float((2 * (ranks * np.sort(counts_I)).sum() / total - size - 1) / size)


def _spread(counts: np.ndarray) -> dict[str, float]:
    if len(counts) == 0:
        return {}
    values = np.quantile(counts, list(_QUANTILES.values()))
    return {"mean": float(counts.mean()), **dict(zip(_QUANTILES, map(float, values), strict=True))}


def _time(log: InteractionLog) -> dict[str, Any] | None:
    if log.times_C is None or len(log) == 0:
        return None
    first, last = float(log.times_C.min()), float(log.times_C.max())
    return {"first": _date(first), "last": _date(last), "days": (last - first) / 86_400}


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _domains(log: InteractionLog) -> dict[str, int]:
    """Clicks per domain."""
    if log.domains_C is None:
        return {}
    counts = np.bincount(log.domains_C, minlength=len(log.domain_names))
    return {name: int(count) for name, count in zip(log.domain_names, counts, strict=True)}
