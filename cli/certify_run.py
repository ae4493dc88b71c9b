"""The certified vote on the users of a run, counted: the glue between a run's devices and the certificate."""

from __future__ import annotations

from typing import Any

import numpy as np

from cli.run_patch import base_and_patch
from client.recommend import RecommendTask
from client.vote import Voter
from fedquilt.certificate import certified_radii, vote_scores, worst_ranks
from fedquilt.device_defences import VoteConfig
from fedquilt.errors import RunError
from fedquilt.graphs.datasets import load_split
from fedquilt.metrics import rank_counts, ranking_metrics
from fedquilt.runs import RunFolder
from fedquilt.seeds import generator_for

K = 10
_CHUNK = 64  # users at a time


def certified_table(run: RunFolder, groups: int, ballot: int, largest: int, num_users: int) -> dict[str, Any]:
    """{"plain", "rows": [{"insertions", "HR@10", "NDCG@10", "abstain_rate", "certified_items"}], ...}.

    Of test clicks, against all items that the user has not clicked, under the federated patch. HR and NDCG count every
    click at the worst rank that the theorem leaves; a user abstains for whom no item of the list is certified. Row 0 is
    the vote as it is.
    """
    config, (base, patch_P) = run.config, base_and_patch(run)
    vote = VoteConfig(
        groups=groups or config.vote.groups or 8, ballot=ballot or config.vote.ballot, key=config.vote.key
    )
    split = load_split(config.data, config.split)
    if not len(split.test):
        raise RunError(f"{run.path}: protocol {split.protocol} holds out no test clicks to certify")
    task = RecommendTask(config.model_copy(update={"vote": vote}), split, np.unique(split.test.users_H))
    task.install(base)
    rng = generator_for(config.seed, use="certified-users")
    users_U = np.sort(rng.permutation(task.client_ids_U)[:num_users])
    starts = range(0, len(users_U), _CHUNK)
    parts = [_certified(task, users_U[start : start + _CHUNK], patch_P, vote, largest) for start in starts]
    clicks, lists = (np.concatenate([part[place] for part in parts]) for place in (0, 1))
    greater_H, ties_H = (np.concatenate([part[2][place] for part in parts]) for place in (0, 1))
    metrics = ranking_metrics(greater_H, ties_H, (K,))
    return {
        "users": len(users_U),
        "clicks": len(clicks),
        "groups": vote.groups,
        "ballot": vote.ballot,
        "plain": {name: float(metrics[name].mean()) for name in (f"HR@{K}", f"NDCG@{K}")},
        "rows": [_row(insertions, clicks[:, insertions], lists) for insertions in range(largest + 1)],
    }


def _row(insertions: int, worst_H: np.ndarray, radii_UK: np.ndarray) -> dict[str, float]:
    safe_UK = radii_UK >= insertions
    return {
        "insertions": insertions,
        f"HR@{K}": float((worst_H <= K).mean()),
        f"NDCG@{K}": float(np.where(worst_H <= K, 1 / np.log2(worst_H + 1.0), 0).mean()),
        "abstain_rate": float((~safe_UK.any(axis=1)).mean()),
        "certified_items": float(safe_UK.sum(axis=1).mean()),
    }


def _certified(
    task: RecommendTask, users_U: np.ndarray, patch_P: np.ndarray, vote: VoteConfig, largest: int
) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """-> (worst ranks of held-out clicks [H, largest + 1], radii of the lists [U, K], counts without a vote)."""
    voter: Voter = task.voter
    votes_UI = task.votes(users_U, patch_P)
    open_UI, order_I = ~task._seen(users_U, "test"), voter.order_I
    held = task.split.test
    rows_H = np.searchsorted(users_U, held.users_H).clip(max=len(users_U) - 1)
    mine_H = users_U[rows_H] == held.users_H
    rows_H, items_H = rows_H[mine_H], held.items_H[mine_H].astype(np.int64)
    worst = [
        worst_ranks(votes_UI[rows_H], open_UI[rows_H], order_I, items_H[:, None], vote.groups, vote.ballot, k)[:, 0]
        for k in range(largest + 1)
    ]
    ranked_UI = np.where(open_UI, vote_scores(votes_UI, order_I), -np.inf)
    lists_UK = np.argsort(-ranked_UI, axis=1)[:, :K]
    radii_UK = certified_radii(votes_UI, open_UI, order_I, lists_UK, vote.groups, vote.ballot, K, largest)
    plain_UI = task.shared_scores(users_U, patch_P).numpy()
    return np.stack(worst, axis=1), radii_UK, rank_counts(plain_UI, items_H, rows_H, ~open_UI)
