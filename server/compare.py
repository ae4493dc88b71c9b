"""Paired comparison, user by user, of two variants of one run or of two runs under the same protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedquilt.errors import RunError
from fedquilt.graphs.groups import GROUP_NAMES
from fedquilt.runs import RunFolder
from fedquilt.seeds import generator_for
from server.evaluate import EVALUATION, per_user, variants_of

_BLOCK = 64  # resamples at a time; bounds memory at _BLOCK x users


def compare_runs(
    run_a: RunFolder, run_b: RunFolder, variants: tuple[str, str], ks: Sequence[int], metric: str = "NDCG@10"
) -> dict[str, Any]:
    """B minus A over the users that both evaluated: every metric over all users, ``metric`` by group.

    Errors: RunError where the protocols' hashes differ, a variant or metric is unknown, or no user is shared.
    """
    stored_a, stored_b = run_a.read_arrays(EVALUATION), run_b.read_arrays(EVALUATION)
    _require_same_protocol(run_a, run_b, stored_a, stored_b)
    values_a, values_b = (
        _values(run, stored, variant, ks)
        for run, stored, variant in zip((run_a, run_b), (stored_a, stored_b), variants, strict=True)
    )
    if metric not in values_a:
        raise RunError(f"no metric {metric!r}; there are {', '.join(values_a)}")
    users, in_a, in_b = np.intersect1d(
        np.unique(stored_a["client_ids"]), np.unique(stored_b["client_ids"]), return_indices=True
    )
    if not len(users):
        raise RunError(f"{run_a.name} and {run_b.name} evaluated no user in common")
    pairs = {name: (values_a[name][in_a], values_b[name][in_b]) for name in values_a}
    groups = {name: mask[in_a] for name, mask in _user_groups(stored_a).items()}
    return {
        "a": {"run": run_a.name, "variant": variants[0]},
        "b": {"run": run_b.name, "variant": variants[1]},
        "protocol": {"name": str(stored_a["protocol"]), "hash": str(stored_a["protocol_hash"])},
        "users": len(users),
        "only_in_one": len(np.setxor1d(stored_a["client_ids"], stored_b["client_ids"])),
        "metrics": {name: paired(*pair) for name, pair in pairs.items()},
        "metric": metric,
        "groups": {name: paired(*(side[mask] for side in pairs[metric])) for name, mask in groups.items()},
    }


def paired(a_U: np.ndarray, b_U: np.ndarray, resamples: int = 2000) -> dict[str, float]:
    """Mean of b - a with its 95 % bootstrap interval and a two-sided Wilcoxon signed-rank p (Pratt's zeros)."""
    from scipy.stats import wilcoxon  # takes 0.5 s to import

    difference_U = b_U - a_U
    low, high = bootstrap_interval(difference_U, resamples)
    changed = bool(np.any(difference_U != 0))
    return {
        "users": len(difference_U),
        "a": float(a_U.mean()),
        "b": float(b_U.mean()),
        "difference": float(difference_U.mean()),
        "low": low,
        "high": high,
        "p": float(wilcoxon(difference_U, zero_method="pratt", method="asymptotic").pvalue) if changed else 1.0,
        "better": float((difference_U > 0).mean()),
        "worse": float((difference_U < 0).mean()),
    }


def bootstrap_interval(difference_U: np.ndarray, resamples: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of the mean over users drawn with replacement; the draw is keyed, so it repeats."""
    rng = generator_for(0, use="bootstrap")
    count = len(difference_U)
    means = [
        difference_U[rng.integers(0, count, (min(_BLOCK, resamples - start), count))].mean(1)
        for start in range(0, resamples, _BLOCK)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def over_seeds(tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Nested tables of several seeds -> the same tree with {"mean", "std", "seeds"} at its leaves (std with n - 1).

    Keys that not every seed has are left out.
    """
    first = tables[0]
    shared = [key for key in first if all(key in table for table in tables)]
    merged: dict[str, Any] = {}
    for key in shared:
        values = [table[key] for table in tables]
        if isinstance(first[key], Mapping):
            merged[key] = over_seeds(values)
        elif isinstance(first[key], int | float):
            std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
            merged[key] = {"mean": float(np.mean(values)), "std": std, "seeds": len(values)}
    return merged


def _require_same_protocol(
    a: RunFolder, b: RunFolder, stored_a: Mapping[str, Any], stored_b: Mapping[str, Any]
) -> None:
    if str(stored_a["protocol_hash"]) != str(stored_b["protocol_hash"]):
        raise RunError(
            f"{a.name} was judged by {stored_a['protocol']} ({stored_a['protocol_hash']}), {b.name} by "
            f"{stored_b['protocol']} ({stored_b['protocol_hash']}); numbers of different protocols do not compare: "
            "use the same [data] and [split]"
        )


def _values(run: RunFolder, stored: Mapping[str, Any], variant: str, ks: Sequence[int]) -> dict[str, np.ndarray]:
    known = variants_of(stored)
    if variant not in known:
        raise RunError(f"{run.name} has no variant {variant!r}; it has {', '.join(known)}")
    return per_user(stored, variant, ks)[0]


def _user_groups(stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """bool [U] per group that holds anybody; by item only where users hold out one click each."""
    _, first_U = np.unique(stored["client_ids"], return_index=True)
    labels = {"users": stored["group_users"][first_U]}
    if len(first_U) == len(stored["client_ids"]):
        labels["items"] = stored["group_items"][first_U]
    masks = {
        f"{name}/{part}": values == index for name, values in labels.items() for index, part in enumerate(GROUP_NAMES)
    }
    new_U = stored["new_to_cloud"][first_U]
    masks |= {"new-to-cloud": new_U, "known-to-cloud": ~new_U}
    return {name: mask for name, mask in masks.items() if mask.any()}
