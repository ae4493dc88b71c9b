"""Logs with some users' clicks forged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fedquilt.errors import DataError
from fedquilt.graphs.log import InteractionLog


def replaced(log: InteractionLog, histories: Mapping[int, np.ndarray]) -> InteractionLog:
    """The log with other items in these users' places: times and lengths stay. DataError where a length differs."""
    items_C = log.items_C.copy()
    for user, items in histories.items():
        place = slice(log.offsets[user], log.offsets[user + 1])
        if len(items) != place.stop - place.start:
            raise DataError(f"forged history of user {user}: {len(items)} clicks, expected {place.stop - place.start}")
        items_C[place] = items
    return replace(log, items_C=items_C, ratings_C=None, domains_C=None)


def appended(log: InteractionLog, users: np.ndarray, items_S: np.ndarray) -> InteractionLog:
    """The log in which each of these users has clicked these items last, in this order."""
    ends = np.repeat(log.offsets[np.asarray(users) + 1], len(items_S))
    times_C = log.times_C
    if times_C is not None:
        latest = times_C[np.maximum(ends - 1, 0)] if len(times_C) else np.zeros(len(ends))
        times_C = np.insert(times_C, ends, latest)
    return replace(
        log,
        users_C=np.insert(log.users_C, ends, np.repeat(users, len(items_S))),
        items_C=np.insert(log.items_C, ends, np.tile(items_S, len(users))),
        times_C=times_C,
        ratings_C=None,
        domains_C=None,
    )


def histories_of(log: InteractionLog, users: np.ndarray) -> dict[int, np.ndarray]:
    return {int(user): log.items_of(int(user)) for user in users}
