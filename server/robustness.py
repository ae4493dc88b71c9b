"""What an attack did, measured on honest users only: exposure of targets, ranking quality, rejections, triggers.

Exposure ratio ER@K of a target (Rong et al. 2022, arXiv:2204.01499): the share of users, among those who have not
clicked it, who are shown it in their top K. ``top_UK`` are lists as devices send them: best first, clicked items left
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedquilt.graphs.groups import TAIL, user_groups
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import Split
from fedquilt.metrics import contains, rank_counts, ranking_metrics
from fedquilt.wire import DECLINED
from server.evaluate import Part, label, per_user, seen_items, variants_of

EXPOSURE_KS = (5, 10, 20)
VARIANTS = ("base", "global", "personal")


def exposure(top_UK: np.ndarray, open_UT: np.ndarray, targets_T: np.ndarray, k: int) -> float:
    """Mean over targets of ER@K; ``open_UT`` says who has not clicked which target. NaN where everybody has."""
    shown_UT = (top_UK[:, :k, None] == targets_T).any(axis=1) & open_UT
    open_T = open_UT.sum(axis=0)
    return float((shown_UT.sum(axis=0)[open_T > 0] / open_T[open_T > 0]).mean()) if open_T.any() else float("nan")


def not_clicked(split: Split, part: Part, users_U: np.ndarray, targets_T: np.ndarray) -> np.ndarray:
    """bool [U, T]: target t competes for a place in user u's list."""
    offsets, items = seen_items(split, part)
    users_C = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    keys = users_C * split.train.num_items + items
    return ~contains(keys, users_U[:, None] * split.train.num_items + targets_T)


def honest_tables(
    arrays: Mapping[str, np.ndarray], split: Split, part: Part, malicious_M: np.ndarray, targets_T: np.ndarray
) -> dict[str, dict[str, float]]:
    """{variant: {"NDCG@10", "NDCG@10 tail", "HR@10", "ER@5", "ER@10", "ER@20"}} over honest users.

    ``arrays`` are an evaluation's, with ``client_ids``, one row a user. Tail users are the least active third.
    """
    honest = ~np.isin(arrays["client_ids"], malicious_M)
    kept = {name: np.asarray(values)[honest] for name, values in arrays.items()}
    labelled = label(kept, split, part)
    users_U = np.unique(labelled["client_ids"])
    open_UT = not_clicked(split, part, users_U, targets_T)
    tail_U = user_groups(split.train)[users_U] == TAIL
    return {
        variant: _row(labelled, variant, tail_U, open_UT, targets_T)
        for variant in variants_of(labelled)
        if variant in VARIANTS
    }


def _row(
    labelled: Mapping[str, np.ndarray], variant: str, tail_U: np.ndarray, open_UT: np.ndarray, targets_T: np.ndarray
) -> dict[str, float]:
    values, first_U = per_user(labelled, variant, (10,))
    row = {
        "NDCG@10": float(values["NDCG@10"].mean()),
        "NDCG@10 tail": float(values["NDCG@10"][tail_U].mean()) if tail_U.any() else float("nan"),
        "HR@10": float(values["HR@10"].mean()),
    }
    top_UK = labelled[f"top_{variant}"][first_U]
    return row | {f"ER@{k}": exposure(top_UK, open_UT, targets_T, k) for k in EXPOSURE_KS}


def top_lists(scores_UI: np.ndarray, seen_UI: np.ndarray, k: int) -> np.ndarray:
    """int64 [U, k]: best first, what is seen left out."""
    return np.argsort(np.where(seen_UI, np.inf, -scores_UI), axis=1, kind="stable")[:, :k]


def ndcg_of(scores_UI: np.ndarray, targets_U: np.ndarray, seen_UI: np.ndarray) -> float:
    """NDCG@10 of one held-out item a user, by the closed-form rank count."""
    return float(ranking_metrics(*rank_counts(scores_UI, targets_U, None, seen_UI), (10,))["NDCG@10"].mean())


def rejections(
    judged: Sequence[tuple[int, int]],
    turned_away: Iterable[tuple[int, int]],
    log: InteractionLog,
    malicious_M: np.ndarray,
) -> dict[str, float | None]:
    """Shares of places in rounds that were lost: of honest users, of honest tail users, of malicious ones.

    ``judged`` and ``turned_away`` are (round, client id). None where nobody of the kind was judged.
    """
    away = set(turned_away)
    tail = set(np.flatnonzero(user_groups(log) == TAIL).tolist())
    bad = set(malicious_M.tolist())
    honest = [pair for pair in judged if pair[1] not in bad]
    groups = {
        "honest": honest,
        "honest tail": [pair for pair in honest if pair[1] in tail],
        "malicious": [pair for pair in judged if pair[1] in bad],
    }
    return {name: sum(pair in away for pair in pairs) / len(pairs) if pairs else None for name, pairs in groups.items()}


def turned_away(records: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """(round, client id) of every rejection that the rounds' records name. A device that declined was not rejected."""
    return [
        (record["round"], rejected["client_id"])
        for record in records
        for rejected in record["rejected"]
        if not rejected["reason"].endswith(tuple(DECLINED.values()))
    ]


def trajectory(
    points: Sequence[tuple[int, Mapping[str, Mapping[str, float]]]], variant: str, metric: str
) -> dict[str, Any]:
    """{"rounds", "values", "max", "last"} of one figure over the evaluations of a run."""
    values = [tables[variant][metric] for _, tables in points]
    return {"rounds": [round_ for round_, _ in points], "values": values, "max": max(values), "last": values[-1]}


def success_by_budget(won_UB: np.ndarray) -> list[float]:
    """won_UB: bool, with 0, 1, 2, ... insertions -> share of users on whom at most so many were enough."""
    return np.maximum.accumulate(won_UB, axis=1).mean(axis=0).tolist()
