"""The headline figures of the robustness study, for one rule, from rows alone. What is not measured is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.stats import t

from cli.attack_options import clean_options

Row = dict[str, Any]
PLAIN, NONE, SHARE = ("mean", "mean-by-part"), "none", 0.2
BESIDE = ("dataset", "targets", "tolerate")  # in which an attacked row and the clean one beside it agree
LEAST_GAIN = 0.005  # NDCG@10; of a smaller gain a share says nothing
SLACK = 0.01  # added to both exposures of a ratio: a clean exposure is often 0


VARIANTS = ("global", "personal")  # lists that users get


@dataclass(frozen=True)
class Verdict:
    """What an attack got from a rule on a log: means over its seeds, beside clean runs with the same seeds.

    ``loss``: 1 - NDCG attacked / NDCG clean, and ``half_width`` of its 95 % t interval over seeds (NaN for fewer than
    three); of the lists that lose more, shared or personal, as are the exposures. ``exposure``: the target's ER@10, the
    largest of all evaluations; ``triggered``: with the backdoor's trigger. None where it was not measured.
    """

    rows: Sequence[Row]
    loss: float | None
    half_width: float
    exposure: float
    clean_exposure: float | None
    triggered: float | None
    rejected: Mapping[str, float | None]

    @property
    def ratio(self) -> float | None:
        """(ER@10 attacked + SLACK) / (clean + SLACK)."""
        return None if self.clean_exposure is None else (self.exposure + SLACK) / (self.clean_exposure + SLACK)

    @property
    def rise(self) -> float | None:
        return None if self.clean_exposure is None else self.exposure - self.clean_exposure


def headline(rows: Sequence[Row], rule: str) -> dict[str, float]:
    """The worst attack on the worst log at 20 %; each is compared with the clean runs of its log, targets and seeds.

    {} for no rule. clean_cost: (clean NDCG of the mean - of the rule) / (clean NDCG of the mean - of the base), the
    largest of all logs where the mean gains LEAST_GAIN, and of both optimizers. The others: the largest of ``Verdict``,
    and for rejections none counts as an attack. attacks_judged, least_seeds: attacks of which the worst is taken, and
    seeds of the one that has fewest.
    """
    at_20pct = [row for row in rows if row["malicious"] == SHARE and not row.get("set")]  # trials are not of the study
    ours = [row for row in at_20pct if row["rule"] == rule]
    if not rule or not ours:
        return {}
    all_verdicts = verdicts(ours)
    attacks = [verdict for verdict in all_verdicts if verdict.rows[0]["attack"] != NONE]
    worst: dict[str, Iterable[float | None]] = {
        "clean_cost": clean_costs(at_20pct, ours).values(),
        "worst_ndcg_loss_20pct": [verdict.loss for verdict in attacks],
        "worst_er10_ratio_20pct": [verdict.ratio for verdict in attacks],
        "worst_er10_rise_20pct": [verdict.rise for verdict in attacks],
        "backdoor_success": [verdict.triggered for verdict in attacks],
        "honest_reject_rate": [verdict.rejected["honest"] for verdict in all_verdicts],
        "tail_reject_rate": [verdict.rejected["honest tail"] for verdict in all_verdicts],
        "attacks_judged": [len({repr([v.rows[0]["attack"], v.rows[0]["options"]]) for v in attacks}) or None],
        "least_seeds": [min((len({row["seed"] for row in v.rows}) for v in attacks), default=None)],
    }
    told = {name: [value for value in values if value is not None] for name, values in worst.items()}
    return {name: max(values) for name, values in told.items() if values}


def verdicts(ours: Sequence[Row]) -> list[Verdict]:
    """Of one rule's rows at one share, clean ones included; one for each log, choice of targets, attack and options."""
    return [_verdict(part, _clean_beside(part, ours)) for part in _groups(ours)]


def _verdict(part: Sequence[Row], clean: Sequence[Row]) -> Verdict:
    losses = [_loss(part, clean, variant) for variant in VARIANTS if clean and variant in part[0]["test"]]
    loss, half_width = max(losses, default=(None, float("nan")))
    return Verdict(
        rows=part,
        loss=loss,
        half_width=half_width,
        exposure=_mean(part, _exposure),
        clean_exposure=_mean(clean, _exposure) if clean else None,
        triggered=_mean(part, _triggered) if "backdoor" in part[0] else None,
        rejected={group: _rejected(part, group) for group in ("honest", "honest tail", "malicious")},
    )


def _loss(part: Sequence[Row], clean: Sequence[Row], variant: str) -> tuple[float, float]:
    """(The loss in NDCG@10, half the width of its interval), seeds in pairs."""
    of_seed = {row["seed"]: row["test"][variant]["NDCG@10"] for row in clean}
    pairs = [(row["test"][variant]["NDCG@10"], of_seed[row["seed"]]) for row in part if row["seed"] in of_seed]
    attacked_S, clean_S = np.array(pairs).T
    loss, count = 1 - attacked_S.mean() / clean_S.mean(), len(pairs)
    if count < 3:
        return float(loss), float("nan")
    spread = np.std(clean_S - attacked_S, ddof=1) / np.sqrt(count) / clean_S.mean()
    return float(loss), float(t.ppf(0.975, count - 1) * spread)


def clean_costs(rows: Sequence[Row], ours: Sequence[Row]) -> dict[tuple[str, str], float]:
    """By log and plain mean, of those that gain LEAST_GAIN and have clean runs with the seeds of the rule's."""
    costs = {}
    for dataset, plain_rule in product(sorted({row["dataset"] for row in ours}), PLAIN):
        clean = [row for row in ours if row["dataset"] == dataset and row["attack"] == NONE and not row["options"]]
        plain = _clean_beside(clean, [row for row in rows if row["rule"] == plain_rule]) if clean else []
        clean = _clean_beside(plain, clean)
        if plain and (gain := _mean(plain, _ndcg) - _mean(plain, _base)) >= LEAST_GAIN:
            costs[dataset, plain_rule] = (_mean(plain, _ndcg) - _mean(clean, _ndcg)) / gain
    return costs


def _groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ by seed only."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(repr([row.get(name) for name in (*BESIDE, "attack", "options")]), []).append(row)
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
    shares = [share for row in part if (share := row["rejected"].get(group)) is not None]
    return float(np.mean(shares)) if shares else None


def _mean(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    return float(np.mean([value(row) for row in rows]))


def _ndcg(row: Row) -> float:
    return float(row["test"]["global"]["NDCG@10"])


def _base(row: Row) -> float:
    return float(row["test"]["base"]["NDCG@10"])


def _exposure(row: Row) -> float:
    """The shared patch's at every evaluation, the personal patches' at the last."""
    return max(row["trajectory"]["ER@10"]["max"], *(row["test"][v]["ER@10"] for v in VARIANTS if v in row["test"]))


def _triggered(row: Row) -> float:
    return max(row["backdoor"][variant]["triggered"] for variant in ("global", "personal"))
