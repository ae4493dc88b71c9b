"""The headline figures of the robustness study, for one rule, from rows alone. What is not measured is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np

from cli.attack_options import clean_options

Row = dict[str, Any]
PLAIN, NONE, SHARE = ("mean", "mean-by-part"), "none", 0.2
BESIDE = ("dataset", "targets", "tolerate")  # in which an attacked row and the clean one beside it agree
LEAST_GAIN = 0.005  # NDCG@10; of a smaller gain a share says nothing
SLACK = 0.01  # added to both exposures of a ratio: a clean exposure is often 0


def headline(rows: Sequence[Row], rule: str) -> dict[str, float]:
    """The worst attack on the worst log; each is compared with the clean runs of the same log, targets and seeds.

    {} for no rule. clean_cost: (clean NDCG of the mean - of the rule) / (clean NDCG of the mean - of the base), the
    largest of all logs where the mean gains LEAST_GAIN, and of both optimizers. worst_ndcg_loss_20pct: largest
    1 - NDCG attacked / NDCG clean.
    worst_er10_ratio_20pct: largest (ER@10 attacked + SLACK) / (clean + SLACK), of the largest ER@10 of all rounds;
    worst_er10_rise_20pct: largest difference of the same two. Reject rates: of the attack that has most rejected, none
    included. attacks_judged, least_seeds: attacks of which the worst is taken, and seeds of the one that has fewest.
    """
    at_20pct = [row for row in rows if row["malicious"] == SHARE and not row.get("set")]  # trials are not of the study
    ours = [row for row in at_20pct if row["rule"] == rule]
    compared = [(part, clean) for part in _groups(ours) if (clean := _clean_beside(part, ours))]
    if not rule or not ours:
        return {}
    found: dict[str, float] = {}
    if costs := _clean_costs(at_20pct, ours):
        found["clean_cost"] = max(costs)
    if compared:
        found["worst_ndcg_loss_20pct"] = max(1 - _mean(part, _ndcg) / _mean(clean, _ndcg) for part, clean in compared)
        found["worst_er10_ratio_20pct"] = max(
            (_mean(part, _exposure) + SLACK) / (_mean(clean, _exposure) + SLACK) for part, clean in compared
        )
        found["worst_er10_rise_20pct"] = max(
            _mean(part, _exposure) - _mean(clean, _exposure) for part, clean in compared
        )
    if backdoors := [part for part in _groups(ours) if "backdoor" in part[0]]:
        found["backdoor_success"] = max(_mean(part, _triggered) for part in backdoors)
    for name, group in (("honest_reject_rate", "honest"), ("tail_reject_rate", "honest tail")):
        if rates := [rate for part in _groups(ours, clean=True) if (rate := _rejected(part, group)) is not None]:
            found[name] = max(rates)
    if parts := _groups(ours):
        found["attacks_judged"] = len({repr([part[0]["attack"], part[0]["options"]]) for part in parts})
        found["least_seeds"] = min(len({row["seed"] for row in part}) for part in parts)
    return found


def _clean_costs(rows: Sequence[Row], ours: Sequence[Row]) -> list[float]:
    """One for each log and plain mean that gains LEAST_GAIN and has clean runs with the seeds of the rule's."""
    costs = []
    for dataset, plain_rule in product(sorted({row["dataset"] for row in ours}), PLAIN):
        clean = [row for row in ours if row["dataset"] == dataset and row["attack"] == NONE and not row["options"]]
        plain = _clean_beside(clean, [row for row in rows if row["rule"] == plain_rule]) if clean else []
        clean = _clean_beside(plain, clean)
        if plain and (gain := _mean(plain, _ndcg) - _mean(plain, _base)) >= LEAST_GAIN:
            costs.append((_mean(plain, _ndcg) - _mean(clean, _ndcg)) / gain)
    return costs


def _groups(rows: Sequence[Row], clean: bool = False) -> list[list[Row]]:
    """Attacked rows that differ by seed only; those of nobody's attack too where asked."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if clean or row["attack"] != NONE:
            key = repr([row.get(name) for name in (*BESIDE, "attack", "options")])
            groups.setdefault(key, []).append(row)
    return list(groups.values())


def _clean_beside(part: Sequence[Row], rows: Sequence[Row]) -> list[Row]:
    """Clean rows of the logs, targets and seeds of ``part`` that leave out the same users."""
    wanted = {tuple(row.get(name) for name in (*BESIDE, "seed")) for row in part}
    clean = [row for row in rows if row["attack"] == NONE and part and row["options"] == beside(part[0])]
    return [row for row in clean if tuple(row.get(name) for name in (*BESIDE, "seed")) in wanted]


def beside(row: Row) -> dict[str, Any]:
    """Options of the clean run that a row is compared with."""
    return row["options"] if row["attack"] == NONE else clean_options(row["attack"], row["options"])


def _rejected(part: Sequence[Row], group: str) -> float | None:
    shares = [row["rejected"][group] for row in part if row["rejected"][group] is not None]
    return float(np.mean(shares)) if shares else None


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
