"""Head, mid and tail: of items by popularity, of users by activity, both counted on training clicks.

Items follow Abdollahpouri et al. 2019 (arXiv:1901.07555): the most popular items that make up 20 % of the clicks are
the head, the least popular ones that make up 20 % the tail, the rest the middle. Users are cut into thirds by their
number of clicks. Ties are broken by index, so groups are deterministic.
"""

from __future__ import annotations

import numpy as np

from fedquilt.graphs.log import InteractionLog

HEAD, MID, TAIL = 0, 1, 2
GROUP_NAMES = ("head", "mid", "tail")
_HEAD_SHARE = _TAIL_SHARE = 0.2


def item_groups(train: InteractionLog) -> np.ndarray:
    """int64 [I] of HEAD, MID, TAIL. An item without a training click is tail."""
    popularity_I = train.popularity_I
    order = np.argsort(-popularity_I, kind="stable")
    before = np.cumsum(popularity_I[order]) - popularity_I[order]
    groups_I = np.full(train.num_items, TAIL)
    groups_I[order[before < (1 - _TAIL_SHARE) * len(train)]] = MID
    groups_I[order[before < _HEAD_SHARE * len(train)]] = HEAD
    return groups_I


def user_groups(train: InteractionLog) -> np.ndarray:
    """int64 [U] of HEAD (the most active third), MID, TAIL."""
    order = np.argsort(-np.diff(train.offsets), kind="stable")
    groups_U = np.empty(train.num_users, np.int64)
    groups_U[order] = np.arange(train.num_users) * 3 // max(train.num_users, 1)
    return groups_U
