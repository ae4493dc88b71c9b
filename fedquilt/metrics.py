"""Ranking metrics from ONE closed-form rank count, without favouring ties.

A target with ``greater`` candidates scored above it and ``ties`` candidates scored equal to it has a rank that is
uniform on greater + 1 ... greater + ties + 1 when ties are broken at random. Every metric here is the exact expectation
under that draw, so a scorer that says nothing (all scores equal) sits exactly at chance.

Shapes: U rows of scores, I items, H held-out clicks, K list length. Inputs are numpy arrays or torch CPU tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fedquilt.errors import FedquiltError
from fedquilt.graphs.describe import gini as gini_of_counts
from fedquilt.graphs.groups import GROUP_NAMES

METRICS = ("HR", "NDCG", "Recall", "MRR")
_BLOCK_BYTES = 1 << 18  # one block of comparison results stays in a core's second-level cache

Counts = tuple[np.ndarray, np.ndarray]
Csr = tuple[np.ndarray, np.ndarray]


class MetricError(FedquiltError):
    """Scores or counts that no honest metric can be computed from."""


# --- the rank count -------------------------------------------------------------------------------------------------


def rank_counts(scores_UI: Any, targets_H: Any, rows_H: Any = None, seen: np.ndarray | Csr | None = None) -> Counts:
    """How many candidates are scored above each target, and how many tie with it: (greater_H, ties_H), int64.

    Candidates are all items but those that ``seen`` names: a bool mask [U, I], or CSR (offsets [U + 1], items) whose
    items may repeat. The target is always a candidate and is not counted. ``rows_H`` are the targets' rows of
    ``scores_UI`` and of ``seen``; None means row h for target h. Raises MetricError for a score that is not finite.
    """
    scores_UI, targets_H = as_numpy(scores_UI), as_numpy(targets_H).astype(np.int64)
    rows_H = None if rows_H is None else as_numpy(rows_H).astype(np.int64)
    _check_shapes(scores_UI, targets_H, rows_H)
    greater_H, ties_H = np.empty(len(targets_H), np.int64), np.empty(len(targets_H), np.int64)
    for block in _blocks(len(targets_H), scores_UI.shape[1]):
        rows_B = np.arange(block.start, block.stop) if rows_H is None else rows_H[block]
        scores_BI = scores_UI[block] if rows_H is None else scores_UI[rows_B]
        _require_finite(scores_BI, block.start)
        greater_H[block], ties_H[block] = _count(
            scores_BI, targets_H[block], _allowed(seen, rows_B, targets_H[block], scores_UI.shape[1])
        )
    return greater_H, ties_H


def rank_counts_sampled(target_scores_H: Any, negative_scores_HM: Any) -> Counts:
    """The same count where the candidates are the target and M given negatives (loo99: M = 99)."""
    target_H, negative_HM = as_numpy(target_scores_H), as_numpy(negative_scores_HM)
    _require_finite(negative_HM, 0)
    _require_finite(target_H[:, None], 0)
    return (negative_HM > target_H[:, None]).sum(1), (negative_HM == target_H[:, None]).sum(1)


def as_numpy(array: Any) -> np.ndarray:
    """numpy view of an array or of a torch tensor, without importing torch."""
    return array.detach().cpu().numpy() if hasattr(array, "detach") else np.asarray(array)


def _check_shapes(scores_UI: np.ndarray, targets_H: np.ndarray, rows_H: np.ndarray | None) -> None:
    if scores_UI.ndim != 2:
        raise MetricError(f"scores have shape {scores_UI.shape}; expected [users, items]")
    num_rows = len(scores_UI) if rows_H is None else len(rows_H)
    if num_rows != len(targets_H):
        raise MetricError(f"{len(targets_H)} targets for {num_rows} rows; give rows_H, one row for each target")
    if len(targets_H) and not 0 <= targets_H.min() <= targets_H.max() < scores_UI.shape[1]:
        raise MetricError(
            f"targets must lie in 0 .. {scores_UI.shape[1] - 1}; got {targets_H.min()}..{targets_H.max()}"
        )


def _blocks(num_targets: int, num_items: int) -> Iterator[slice]:
    size = max(1, _BLOCK_BYTES // max(1, num_items))
    return (slice(start, min(start + size, num_targets)) for start in range(0, num_targets, size))


def _require_finite(scores_BI: np.ndarray, first: int) -> None:
    if not np.isfinite(scores_BI).all():
        row, column = np.argwhere(~np.isfinite(scores_BI))[0]
        raise MetricError(
            f"score of held-out click {first + row}, column {column} is {scores_BI[row, column]}; ranks need finite "
            "scores (pass seen items as `seen`, do not set them to -inf)"
        )


def _count(scores_BI: np.ndarray, targets_B: np.ndarray, allowed_BI: np.ndarray | None) -> Counts:
    target_B1 = np.take_along_axis(scores_BI, targets_B[:, None], axis=1)
    above_BI, equal_BI = scores_BI > target_B1, scores_BI == target_B1
    if allowed_BI is not None:
        above_BI &= allowed_BI
        equal_BI &= allowed_BI
    # count_nonzero over a row is vectorised, over an axis it is not.
    greater_B = np.fromiter(map(np.count_nonzero, above_BI), np.int64, len(above_BI))
    return greater_B, np.fromiter(map(np.count_nonzero, equal_BI), np.int64, len(equal_BI)) - 1


def _allowed(seen: Any, rows_B: np.ndarray, targets_B: np.ndarray, num_items: int) -> np.ndarray | None:
    """bool [B, I]: the candidates, target included."""
    if seen is None:
        return None
    if isinstance(seen, tuple):
        allowed_BI = np.ones((len(rows_B), num_items), bool)
        block_rows, items = ragged(seen[0], seen[1], rows_B)
        allowed_BI[block_rows, items] = False
    else:
        allowed_BI = ~as_numpy(seen)[rows_B].astype(bool)
    allowed_BI[np.arange(len(rows_B)), targets_B] = True
    return allowed_BI


def ragged(offsets: np.ndarray, items: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a CSR laid end to end: (position in ``rows``, item), one pair for each stored item."""
    lengths = offsets[rows + 1] - offsets[rows]
    starts = np.repeat(offsets[rows] - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths)
    return np.repeat(np.arange(len(rows)), lengths), items[starts + np.arange(lengths.sum())]


def distinct(keys: np.ndarray) -> np.ndarray:
    """Sorted, each once. numpy's own hashes integers, which takes ten times as long on (row, item) keys."""
    keys = np.sort(keys)
    return keys[np.concatenate(([True], keys[1:] != keys[:-1]))] if len(keys) else keys


def contains(sorted_keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """bool, the shape of ``values``: is it among the keys?"""
    if not len(sorted_keys):
        return np.zeros(values.shape, bool)
    return sorted_keys[np.minimum(np.searchsorted(sorted_keys, values), len(sorted_keys) - 1)] == values


# --- metrics --------------------------------------------------------------------------------------------------------


def ranking_metrics(greater_H: Any, ties_H: Any, ks: Sequence[int], users_H: Any = None) -> dict[str, np.ndarray]:
    """Expected HR, NDCG, Recall and MRR at each K, one value per user: {"HR@10": [H], ...}.

    Without ``users_H`` every held-out click is a user of its own, and HR = Recall. With it, clicks of one user are that
    user's R relevant items, ranked together, and values come in the order of ``np.unique(users_H)``:
    Recall@K = (relevant in the first K) / R; NDCG@K divides by the best reachable with min(K, R) relevant items;
    HR@K is 1 if any relevant item is in the first K; MRR@K is 1 / (first relevant rank), 0 beyond K.
    Recall and NDCG follow by linearity; the first relevant rank is hypergeometric within the best tied group.
    """
    greater_H, ties_H = as_numpy(greater_H).astype(np.int64), as_numpy(ties_H).astype(np.int64)
    if len(greater_H) and min(greater_H.min(), ties_H.min()) < 0:
        raise MetricError("rank counts must be non-negative")
    users_H = np.arange(len(greater_H)) if users_H is None else np.unique(as_numpy(users_H), return_inverse=True)[1]
    relevant_U = np.bincount(users_H)
    first_U, mates_U, size_U = _best_group(greater_H, ties_H, users_H, len(relevant_U))
    result: dict[str, np.ndarray] = {}
    for k in ks:
        hit_U, reciprocal_U = _first_relevant(first_U, mates_U, size_U, k)
        gain_K = 1 / np.log2(np.arange(2, k + 2))
        ideal_U = np.concatenate(([0.0], np.cumsum(gain_K)))[np.minimum(relevant_U, k)]
        result[f"HR@{k}"] = hit_U
        result[f"NDCG@{k}"] = _per_user(_expected(greater_H, ties_H, gain_K), users_H, len(relevant_U)) / ideal_U
        hits_U = _per_user(_expected(greater_H, ties_H, np.ones(k)), users_H, len(relevant_U))
        result[f"Recall@{k}"] = hits_U / relevant_U
        result[f"MRR@{k}"] = reciprocal_U
    return result


def _expected(greater_H: np.ndarray, ties_H: np.ndarray, gain_K: np.ndarray) -> np.ndarray:
    """Mean of gain[rank] over the tied ranks of each target; gain is zero beyond K."""
    total = np.concatenate(([0.0], np.cumsum(gain_K)))
    k = len(gain_K)
    return (total[np.minimum(greater_H + ties_H + 1, k)] - total[np.minimum(greater_H, k)]) / (ties_H + 1)


def _per_user(values_H: np.ndarray, users_H: np.ndarray, num_users: int) -> np.ndarray:
    return np.bincount(users_H, weights=values_H, minlength=num_users)


def _best_group(greater_H: np.ndarray, ties_H: np.ndarray, users_H: np.ndarray, num_users: int) -> tuple:
    """Per user: candidates above the best relevant item, relevant items tied with it (itself too), size of the tie."""
    first_U = np.full(num_users, np.iinfo(np.int64).max)
    np.minimum.at(first_U, users_H, greater_H)
    best_H = greater_H == first_U[users_H]
    size_U = np.ones(num_users, np.int64)
    size_U[users_H[best_H]] = ties_H[best_H] + 1
    return first_U, np.bincount(users_H[best_H], minlength=num_users), size_U


def _first_relevant(first_U: np.ndarray, mates_U: np.ndarray, size_U: np.ndarray, k: int) -> tuple:
    """P(first relevant rank <= k) and E[1 / rank, 0 beyond k]; m relevant items lie at random among n tied ones."""
    missed_U, reciprocal_U = np.ones(len(first_U)), np.zeros(len(first_U))
    for place in range(1, k + 1):
        left_U = size_U - place + 1
        inside_U = (first_U + place <= k) & (left_U > 0)
        found_U = np.where(inside_U, missed_U * np.minimum(mates_U / np.maximum(left_U, 1), 1.0), 0.0)
        reciprocal_U += found_U / (first_U + place)
        missed_U = missed_U - found_U
    return 1 - missed_U, reciprocal_U


# --- chance ---------------------------------------------------------------------------------------------------------


def chance(num_candidates: Any, k: int) -> Any:
    """P(a given candidate is in the first k) for a scorer that knows nothing: min(k / candidates, 1)."""
    return np.minimum(k / np.asarray(num_candidates, float), 1.0)


def require_chance(greater_H: Any, ties_H: Any, num_candidates_H: Any, k: int = 10, what: str = "") -> None:
    """Refuse counts of a zero-information scorer whose Recall@k is not at chance (five standard errors)."""
    mean = float(np.mean(_expected(as_numpy(greater_H), as_numpy(ties_H), np.ones(k))))
    chance_H = np.broadcast_to(chance(num_candidates_H, k), as_numpy(greater_H).shape)
    error = float(np.sqrt((chance_H * (1 - chance_H)).sum()) / len(chance_H))
    if abs(mean - chance_H.mean()) > 5 * error + 1e-9:
        raise MetricError(
            f"canary: {what or 'a scorer without information'} reaches HR@{k} = {mean:.4f}, chance is "
            f"{chance_H.mean():.4f} ± {error:.4f}; the evaluation leaks or drops candidates, its numbers mean nothing"
        )


def canary(count: Callable[[np.ndarray], Counts], shape: tuple[int, int], num_candidates_H: Any, k: int = 10) -> None:
    """Run the caller's own rank count on scores that say nothing; raise MetricError unless both sit at chance.

    ``count(scores)`` takes float32 scores of ``shape`` (rows, columns) and returns (greater_H, ties_H). Random scores
    must be within five standard errors of chance, constant scores on it exactly.
    """
    random = np.random.Generator(np.random.Philox(key=0)).random(shape, dtype=np.float32)
    require_chance(*count(random), num_candidates_H, k, "a random scorer")
    greater_H, ties_H = count(np.zeros(shape, np.float32))
    if not np.array_equal(greater_H + ties_H + 1, np.broadcast_to(num_candidates_H, greater_H.shape)):
        raise MetricError(
            "canary: with constant scores every candidate ties, but the count saw "
            f"{np.mean(greater_H + ties_H + 1):.2f} candidates where there are {np.mean(num_candidates_H):.2f}"
        )
    require_chance(greater_H, ties_H, num_candidates_H, k, "a constant scorer")


# --- beyond accuracy, and summaries ---------------------------------------------------------------------------------


def coverage(top_UK: Any, num_items: int) -> float:
    """Share of all items that is recommended to anybody."""
    return len(np.unique(as_numpy(top_UK))) / num_items


def gini(top_UK: Any, num_items: int) -> float:
    """Inequality of exposure over all items, 0 (all shown equally often) to 1 - 1/I (one item takes all)."""
    return gini_of_counts(np.bincount(as_numpy(top_UK).ravel(), minlength=num_items))


def worst_decile(values_U: np.ndarray) -> float:
    """Mean over the tenth of users (rounded up) who are served worst."""
    count = -(-len(values_U) // 10)
    return float(np.partition(values_U, count - 1)[:count].mean())


def summarise(per_user: Mapping[str, np.ndarray], groups: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Means over all users and over groups: {"all": {"users": n, metric: mean, "worst-decile <metric>": ...}, ...}.

    An integer group holds 0 head, 1 mid, 2 tail (anything else: nobody) and gives "<name>/head" and so on; a bool group
    gives "<name>". Groups without users are left out.
    """
    masks = {"all": np.ones(len(next(iter(per_user.values()))), bool)}
    for name, labels in groups.items():
        if labels.dtype == bool:
            masks[name] = labels
        else:
            masks |= {f"{name}/{part}": labels == value for value, part in enumerate(GROUP_NAMES)}
    tables = {name: _means(per_user, mask) for name, mask in masks.items() if mask.any()}
    tables["all"] |= {f"worst-decile {name}": worst_decile(values) for name, values in per_user.items()}
    return tables


def _means(per_user: Mapping[str, np.ndarray], mask_U: np.ndarray) -> dict[str, float]:
    return {"users": int(mask_U.sum())} | {name: float(values[mask_U].mean()) for name, values in per_user.items()}
