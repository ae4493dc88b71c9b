"""The bazaar: a generated log that ships as code, deterministic in its seed, in chunks of users.

A user joins at some time, stays for a while and comes in sessions. A session starts in one of the user's current
interests and its clicks walk through neighbouring niches of that topic, so consecutive clicks are close. Interests are
redrawn from what trends at that time, so they drift; items appear over time, so a stale log misses what is wanted now.
A repeated click on an item is dropped, as in every log here.

Every draw is keyed by (seed, user, place): what a user does depends on neither the chunk nor the number of users.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fedquilt.graphs.bazaar_world import DOMAIN_NAMES, NICHES_PER_TOPIC, NUM_BUCKETS, World, make_world
from fedquilt.graphs.log import InteractionLog, LoadReport
from fedquilt.seeds import uniforms_at, uniforms_for

SPAN_S = 180 * 86_400.0
START_S = 1_700_000_000.0
CHUNK_USERS = 20_000

_MIN_DRAWS = 4
_MAX_DRAWS_OVER_MEAN = 12
_SIGMA = 0.9  # of the log-normal number of clicks
_REPEATS = 1.5  # clicks drawn for each that is kept
_SESSION_CONTINUES = 0.8
_INTEREST_WEIGHTS = np.array([0.5, 0.8, 1.0])  # cumulative, of a user's three interests
_INTEREST_EPOCHS = 2.0  # times that an interest is redrawn over the whole span
_P_EXPLORE = 0.1  # sessions outside the user's interests
_P_FAVOURITE = 0.7  # sessions that start in the niche that a user prefers within the topic
_P_STEP = 0.25  # clicks that move on to a neighbouring niche
_P_ANYWHERE = 0.1  # clicks on whatever is popular


@dataclass(frozen=True)
class Bazaar:
    """The parameters of the generated log."""

    num_users: int = 2000
    num_items: int = 1000
    mean_clicks: float = 50.0
    seed: int = 0


@dataclass(frozen=True)
class Chunk:
    """Clicks of consecutive users, sorted by user and time; ``users_C`` counts from the log's first user."""

    users_C: np.ndarray
    items_C: np.ndarray
    times_C: np.ndarray
    repeats_dropped: int


def chunks(bazaar: Bazaar, chunk_users: int = CHUNK_USERS) -> Iterator[Chunk]:
    """The log in parts of ``chunk_users`` users: memory is that of one part, about 10 KB a user at 50 clicks."""
    world = make_world(bazaar.num_items, bazaar.seed)
    for first in range(0, bazaar.num_users, chunk_users):
        yield _chunk(bazaar, world, np.arange(first, min(first + chunk_users, bazaar.num_users)))


def generate(bazaar: Bazaar, chunk_users: int = CHUNK_USERS) -> InteractionLog:
    """The whole log: 25 bytes a click."""
    parts = list(chunks(bazaar, chunk_users))
    world = make_world(bazaar.num_items, bazaar.seed)
    items_C = np.concatenate([part.items_C for part in parts])
    users_C = np.concatenate([part.users_C for part in parts])
    repeats = sum(part.repeats_dropped for part in parts)
    features_IF, feature_names = world.features()
    return InteractionLog(
        name="bazaar",
        users_C=users_C,
        items_C=items_C,
        num_users=bazaar.num_users,
        num_items=bazaar.num_items,
        times_C=np.concatenate([part.times_C for part in parts]),
        domains_C=world.domain_I.astype(np.int8)[items_C],
        domain_names=DOMAIN_NAMES,
        user_ids=np.arange(bazaar.num_users),
        item_ids=np.arange(bazaar.num_items),
        item_titles=world.titles(),
        item_features_IF=features_IF,
        feature_names=feature_names,
        report=LoadReport(
            rows_read=len(users_C) + repeats,
            duplicates_dropped=repeats,
            one_item_users=int((np.bincount(users_C, minlength=bazaar.num_users) == 1).sum()),
            notes=(f"generated from seed {bazaar.seed}",),
        ),
    )


def _chunk(bazaar: Bazaar, world: World, users: np.ndarray) -> Chunk:
    visits = _visits(bazaar, users)
    buckets_M = np.minimum((visits.shares_M * NUM_BUCKETS).astype(np.int64), NUM_BUCKETS - 1)
    niches_M = _niches(bazaar, world, visits, buckets_M)
    chosen_M = uniforms_at(bazaar.seed, visits.users_M, visits.places_M, "bazaar/item")
    items_M = world.draw_items(buckets_M, chosen_M, niches_M)
    _, first = np.unique(visits.users_M * world.num_items + items_M, return_index=True)
    kept = np.sort(first)
    times = np.floor(START_S + visits.shares_M[kept] * SPAN_S)
    return Chunk(visits.users_M[kept], items_M[kept], times, len(items_M) - len(kept))


@dataclass(frozen=True)
class _Visits:
    """M clicks before any item is chosen. ``starts_M`` is the row of the first click of the click's session."""

    users_M: np.ndarray
    places_M: np.ndarray
    starts_M: np.ndarray
    shares_M: np.ndarray


def _visits(bazaar: Bazaar, users: np.ndarray) -> _Visits:
    """Who clicks when: time as a share of the span, in [0, 1), increasing within a user."""
    own = uniforms_for(bazaar.seed, 0, users, "bazaar/user", 5)
    counts_U = _counts(bazaar.mean_clicks, own[:, 0], own[:, 1])
    rows_U = np.cumsum(counts_U) - counts_U
    users_M = np.repeat(users, counts_U)
    places_M = np.arange(len(users_M)) - np.repeat(rows_U, counts_U)
    new_M = uniforms_at(bazaar.seed, users_M, places_M, "bazaar/session") >= _SESSION_CONTINUES
    new_M |= places_M == 0
    starts_M = np.maximum.accumulate(np.where(new_M, np.arange(len(users_M)), 0))

    founder_U = own[:, 2] < 0.35
    join_U = np.where(founder_U, 0.1, 0.96) * own[:, 3]
    stay_U = (0.99 - join_U) * own[:, 4]
    idle_M = uniforms_at(bazaar.seed, users_M, places_M, "bazaar/wait")
    # Whole ticks: a running sum of floats would round differently in another chunk.
    ticks_M = np.where(new_M & (places_M > 0), -np.log1p(-idle_M) * 2.0**32, 0.0).astype(np.int64)
    since_M = np.cumsum(ticks_M)
    since_M -= np.repeat(since_M[rows_U], counts_U)
    total_U = since_M[rows_U + counts_U - 1]
    reading_M = (places_M + idle_M) * _reading_share(bazaar.mean_clicks)
    pace_U = stay_U / np.maximum(total_U, 1)
    shares_M = np.repeat(join_U, counts_U) + since_M * np.repeat(pace_U, counts_U) + reading_M
    return _Visits(users_M, places_M, starts_M, shares_M)


def _reading_share(mean_clicks: float) -> float:
    """A minute a click as a share of the span, less where the most active user would outlast the span."""
    most_draws = mean_clicks * _REPEATS * _MAX_DRAWS_OVER_MEAN
    return min(60.0 / SPAN_S, 0.009 / (most_draws + 1))


def _counts(mean_clicks: float, first_U: np.ndarray, second_U: np.ndarray) -> np.ndarray:
    """Clicks drawn per user: log-normal (Box and Muller 1958), bounded."""
    normal_U = np.sqrt(-2 * np.log1p(-first_U)) * np.cos(2 * np.pi * second_U)
    mean = mean_clicks * _REPEATS
    counts_U = mean * np.exp(_SIGMA * normal_U - _SIGMA**2 / 2)
    return np.clip(counts_U, _MIN_DRAWS, mean * _MAX_DRAWS_OVER_MEAN).astype(np.int64)


def _niches(bazaar: Bazaar, world: World, visits: _Visits, buckets_M: np.ndarray) -> np.ndarray:
    """The niche of each click: a walk on the ring of the session topic's niches; -1 for a click on what is popular."""
    sessions, session_M = np.unique(visits.starts_M, return_inverse=True)
    topics_S = _topics(bazaar, world, visits, buckets_M, sessions)
    entry_S = _entries(bazaar, visits, sessions, topics_S)
    step_M = uniforms_at(bazaar.seed, visits.users_M, visits.places_M, "bazaar/step")
    moves_M = np.where(step_M < _P_STEP / 2, -1, np.where(step_M < _P_STEP, 1, 0))
    walked_M = np.cumsum(moves_M)
    offset_M = walked_M - walked_M[visits.starts_M] + entry_S[session_M]
    niches_M = topics_S[session_M] * NICHES_PER_TOPIC + offset_M % NICHES_PER_TOPIC
    return np.where(step_M >= 1 - _P_ANYWHERE, -1, niches_M)


def _topics(bazaar: Bazaar, world: World, visits: _Visits, buckets_M: np.ndarray, sessions: np.ndarray) -> np.ndarray:
    """A session's topic: one of the user's interests of that time, or whatever trends."""
    users_S, places_S, buckets_S = visits.users_M[sessions], visits.places_M[sessions], buckets_M[sessions]
    pick_S, explore_S, trend_S = (
        uniforms_at(bazaar.seed, users_S, places_S, f"bazaar/topic/{use}") for use in ("pick", "explore", "trend")
    )
    slot_S = np.searchsorted(_INTEREST_WEIGHTS, pick_S, side="right")
    phase_S = uniforms_at(bazaar.seed, users_S, slot_S, "bazaar/interest/phase")
    epoch_S = np.floor(visits.shares_M[sessions] * _INTEREST_EPOCHS + phase_S).astype(np.int64)
    drawn_S = uniforms_at(bazaar.seed, users_S, slot_S * 8 + epoch_S, "bazaar/interest")
    begun_S = np.maximum((epoch_S - phase_S) / _INTEREST_EPOCHS, 0.0)
    interest_S = world.draw_topics((begun_S * NUM_BUCKETS).astype(np.int64), drawn_S)
    return np.where(explore_S < _P_EXPLORE, world.draw_topics(buckets_S, trend_S), interest_S)


def _entries(bazaar: Bazaar, visits: _Visits, sessions: np.ndarray, topics_S: np.ndarray) -> np.ndarray:
    """The niche within its topic where a session starts: often the one that this user prefers in this topic."""
    users_S, places_S = visits.users_M[sessions], visits.places_M[sessions]
    favourite_S = uniforms_at(bazaar.seed, users_S, topics_S, "bazaar/favourite")
    mood_S = uniforms_at(bazaar.seed, users_S, places_S, "bazaar/mood")
    elsewhere_S = (mood_S - _P_FAVOURITE) / (1 - _P_FAVOURITE)
    return (np.where(mood_S < _P_FAVOURITE, favourite_S, elsewhere_S) * NICHES_PER_TOPIC).astype(np.int64)
