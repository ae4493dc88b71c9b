"""The headline figures of the robustness study, for one rule, from rows alone. What is not measured is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
PLAIN, NONE, SHARE = "mean", "none", 0.2
SLACK = 0.01  # added to both exposures of a ratio: a clean exposure is often 0


def headline(rows: Sequence[Row], rule: str) -> dict[str, float]:
    """Means over seeds, datasets and targets, then the worst attack; {} for no rule.

    clean_cost: (clean NDCG of the mean - of the rule) / (clean NDCG of the mean - of the base).
    worst_ndcg_loss_20pct: largest 1 - NDCG attacked / NDCG clean. worst_er10_ratio_20pct: largest
    (ER@10 attacked + SLACK) / (clean + SLACK), of the largest ER@10 of all rounds.
    """
    ours = [row for row in rows if row["rule"] == rule and row["malicious"] == SHARE]
    clean = [row for row in ours if row["attack"] == NONE]
    attacked = _groups([row for row in ours if row["attack"] != NONE])
    if not rule or not clean:
        return {}
    found: dict[str, float] = {}
    plain = [row for row in rows if row["rule"] == PLAIN and row["attack"] == NONE and row["malicious"] == SHARE]
    if plain and (gain := _mean(plain, _ndcg) - _mean(plain, _base)) > 0:
        found["clean_cost"] = (_mean(plain, _ndcg) - _mean(clean, _ndcg)) / gain
    if attacked:
        found["worst_ndcg_loss_20pct"] = max(1 - _mean(part, _ndcg) / _mean(clean, _ndcg) for part in attacked)
        found["worst_er10_ratio_20pct"] = max(
            (_mean(part, _exposure) + SLACK) / (_mean(clean, _exposure) + SLACK) for part in attacked
        )
    if backdoors := [part for part in attacked if "backdoor" in part[0]]:
        found["backdoor_success"] = max(_mean(part, _triggered) for part in backdoors)
    for name, group in (("honest_reject_rate", "honest"), ("tail_reject_rate", "honest tail")):
        shares = [row["rejected"][group] for row in ours if row["rejected"][group] is not None]
        if shares:
            found[name] = float(np.mean(shares))
    return found


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr((row["attack"], row["options"])), []).append(row)
    return list(groups.values())


def _mean(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    return float(np.mean([value(row) for row in rows]))


def _ndcg(row: Row) -> float:
    return row["test"]["global"]["NDCG@10"]


def _base(row: Row) -> float:
    return row["test"]["base"]["NDCG@10"]


def _exposure(row: Row) -> float:
    return row["trajectory"]["ER@10"]["max"]


def _triggered(row: Row) -> float:
    return max(row["backdoor"][variant]["triggered"] for variant in ("global", "personal"))
