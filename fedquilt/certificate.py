"""A list that a known number of fake clicks cannot change: groups of a user's clicks vote, and margins are certified.

**Setting.** A fixed hash h sends every item to one of S groups. H is a user's history; H_g are its clicks on items of
group g, in order. Group g votes for f(H_g), at most M items: a function of H_g alone (cloud vectors, the cloud's
neighbours, screen and patch are fixed), and nothing where H_g is empty. n_i is the number of groups that vote for i. Of
the candidates, which are items not in H, those with most votes are shown; equal votes go by a fixed order of items.

**Theorem.** Let t be a candidate, and k clicks be inserted into H, anywhere, on any items but t. Put m = max(n_t - k,
0), and for every other candidate i let need_i be the votes that i lacks to be ahead of t had t only m. Then the rank of
t afterwards is at most 1 + the largest number of candidates with need_i <= min(k, S - n_i) whose needs sum to at most
k · M. So if that is at most K, t stays among the K shown.

*Proof sketch.* A click on item x is in H_h(x) only, so at most k groups get another input; the other groups vote as
before. (i) t loses at most one vote in each of them, so it has m at least. (ii) A group gives an item one vote, so i
gains a_i <= k, and a_i <= S - n_i, as only a group that did not vote for i can add to n_i. (iii) A group votes for at
most M items, so sum a_i <= k · M. (iv) Inserted clicks leave fewer candidates, never more. Who is ahead of t afterwards
has a_i >= need_i; the largest set that (ii) and (iii) allow is found by taking the smallest needs first. ∎

An edge inserted into the subgraph of one group changes that group only, so clicks and edges may be counted together.
Not covered: clicks taken away (what was hidden as clicked competes again), a click on t itself (which hides it), a
patch that was trained on the inserted clicks (so: the shared patch, not the personal one), another catalogue. The hash
need not be secret for any of this. Voting over parts of a graph is Opt-GDBA's defence (Yang et al. 2024,
arXiv:2407.08935); counting needs for top-K lists is after PORE (Jia et al. 2023, arXiv:2303.14601).

Shapes: U users, L clicks of a history, S groups, I items, T judged items.
"""

from __future__ import annotations

import numpy as np

from fedquilt.errors import DataError
from fedquilt.seeds import bits_for

NEVER = -1  # radius of an item that is not shown even without an attack


def item_groups(num_items: int, num_groups: int, key: int) -> np.ndarray:
    """int64 [I]: the group of each item, by a hash of (key, item). More items later leave those of today in place."""
    if num_groups < 1:
        raise DataError(f"a vote needs at least one group; got {num_groups}: set vote.groups")
    return (bits_for(key, 0, np.arange(num_items), "vote-groups", 1)[:, 0] % np.uint64(num_groups)).astype(np.int64)


def split_history(histories_UL: np.ndarray, group_I: np.ndarray, num_groups: int) -> np.ndarray:
    """int32 [U, S, L]: each group's clicks, latest first, -1 padded. Histories are whole: one that is cut to a length
    loses its oldest click to an inserted one, and that would reach a second group.
    """
    groups_UL = np.where(histories_UL >= 0, group_I[np.maximum(histories_UL, 0)], NEVER)
    parts = []
    for group in range(num_groups):
        mine_UL = groups_UL == group
        order_UL = np.argsort(~mine_UL, axis=1, kind="stable")
        parts.append(np.take_along_axis(np.where(mine_UL, histories_UL, -1), order_UL, axis=1))
    return np.stack(parts, axis=1).astype(np.int32)


def count_votes(scores_USI: np.ndarray, split_USL: np.ndarray, ballot: int) -> np.ndarray:
    """int64 [U, I]: groups that have the item among their ``ballot`` best, their own clicks left out.

    An empty group does not vote. Equal scores: the smaller item first.
    """
    num_users, _, num_items = scores_USI.shape
    scores = np.array(scores_USI, np.float64)
    users, groups, places = np.nonzero(split_USL >= 0)
    scores[users, groups, split_USL[users, groups, places]] = -np.inf
    width = min(ballot, num_items)
    best = np.argsort(-scores, axis=2, kind="stable")[:, :, :width]
    filled_US = np.any(split_USL >= 0, axis=2)
    valid = np.isfinite(np.take_along_axis(scores, best, 2)) & filled_US.reshape(num_users, -1, 1)
    rows = np.broadcast_to(np.arange(num_users)[:, None, None], best.shape)
    votes = np.bincount((rows * num_items + best)[valid], minlength=num_users * num_items)
    return votes.reshape(num_users, num_items)


def vote_scores(votes_UI: np.ndarray, order_I: np.ndarray) -> np.ndarray:
    """float64 [U, I]: sorts as the vote does, without ties. ``order_I`` is a permutation, 0 goes first."""
    return votes_UI - order_I / len(order_I)


def worst_ranks(
    votes_UI: np.ndarray,
    open_UI: np.ndarray,
    order_I: np.ndarray,
    targets_UT: np.ndarray,
    num_groups: int,
    ballot: int,
    insertions: int,
) -> np.ndarray:
    """int64 [U, T]: the rank of the theorem, at most which each target has after ``insertions`` fake clicks.

    ``open_UI``: candidates, the targets among them or not; ``insertions`` = 0 gives the ranks themselves.
    """
    users = np.arange(len(votes_UI))
    worst_UT = np.empty(targets_UT.shape, np.int64)
    for column, target_U in enumerate(np.asarray(targets_UT).T):
        floor_U = np.maximum(votes_UI[users, target_U] - insertions, 0)
        behind_UI = order_I[None] > order_I[target_U][:, None]
        need_UI = np.maximum(floor_U[:, None] - votes_UI + behind_UI, 0)
        rival_UI = open_UI & (np.arange(votes_UI.shape[1]) != target_U[:, None])
        rival_UI &= need_UI <= np.minimum(insertions, num_groups - votes_UI)
        worst_UT[:, column] = 1 + _most_within(need_UI, rival_UI, insertions, insertions * ballot)
    return worst_UT


def _most_within(need_UI: np.ndarray, rival_UI: np.ndarray, largest: int, budget: int) -> np.ndarray:
    """int64 [U]: how many rivals' needs fit into the budget, smallest first."""
    count_U = (rival_UI & (need_UI == 0)).sum(axis=1)
    left_U = np.full(len(need_UI), budget)
    for need in range(1, largest + 1):
        more_U = np.minimum((rival_UI & (need_UI == need)).sum(axis=1), left_U // need)
        count_U, left_U = count_U + more_U, left_U - more_U * need
    return count_U


def certified_radii(
    votes_UI: np.ndarray,
    open_UI: np.ndarray,
    order_I: np.ndarray,
    targets_UT: np.ndarray,
    num_groups: int,
    ballot: int,
    k: int,
    largest: int,
) -> np.ndarray:
    """int64 [U, T]: the most insertions, up to ``largest``, after which the target is in the top ``k`` for certain.

    ``NEVER`` where it is not there without any.
    """
    radii_UT = np.full(targets_UT.shape, NEVER)
    for insertions in range(largest + 1):
        safe_UT = worst_ranks(votes_UI, open_UI, order_I, targets_UT, num_groups, ballot, insertions) <= k
        radii_UT = np.where(safe_UT & (radii_UT == insertions - 1), insertions, radii_UT)
    return radii_UT
