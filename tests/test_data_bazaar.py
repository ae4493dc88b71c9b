"""The generated log: same bits from the same seed, and the statistics that make it worth learning from."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import sparse

from fedquilt.config import DataConfig, SplitConfig
from fedquilt.graphs.bazaar import SPAN_S, START_S, Bazaar, chunks, generate
from fedquilt.graphs.bazaar_world import NICHES_PER_TOPIC, World, make_world
from fedquilt.graphs.datasets import load_log
from fedquilt.graphs.describe import head_share
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import Split, after_cut, new_to_cloud, split_log
from fedquilt.seeds import uniforms_at, uniforms_for

SMALL = Bazaar(num_users=60, num_items=120)


@pytest.fixture(scope="module")
def log() -> InteractionLog:
    return load_log(DataConfig())


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(1000, seed=0)


@pytest.fixture(scope="module")
def parts(log) -> Split:
    return split_log(log, SplitConfig())


def test_ragged_uniforms_are_those_of_the_table():
    clients, places = np.array([7, 7, 3]), np.array([0, 4, 2])
    table = uniforms_for(5, 0, np.array([3, 7]), "use", 5)
    assert uniforms_at(5, clients, places, "use").tolist() == [table[1, 0], table[1, 4], table[0, 2]]


@pytest.mark.parametrize("chunk_users", [1, 7, 1000])
def test_the_log_does_not_depend_on_the_chunk_size(chunk_users):
    assert generate(SMALL, chunk_users).hash == generate(SMALL).hash


def test_a_user_does_not_depend_on_how_many_others_there_are():
    few, many = generate(SMALL), generate(Bazaar(num_users=90, num_items=120))
    assert np.array_equal(few.items_C, many.items_C[: len(few)])
    assert np.array_equal(few.times_C, many.times_C[: len(few)])


def test_another_seed_gives_another_log():
    assert generate(SMALL).hash == generate(SMALL).hash
    assert generate(Bazaar(60, 120, seed=1)).hash != generate(SMALL).hash


def test_a_chunk_holds_no_more_than_its_users():
    parts = list(chunks(SMALL, chunk_users=25))
    assert [(part.users_C.min(), part.users_C.max()) for part in parts] == [(0, 24), (25, 49), (50, 59)]


@pytest.mark.parametrize(("num_users", "num_items"), [(10, 20), (50, 137)])
def test_the_smallest_bazaars_are_whole_logs(num_users, num_items):
    log = generate(Bazaar(num_users, num_items))
    assert len(np.unique(log.users_C)) == num_users
    assert log.items_C.max() < num_items
    assert log.item_features_IF.shape == (num_items, len(log.feature_names))


def test_clicks_are_ordered_in_time_inside_the_span_and_never_repeated(log):
    same_user = np.diff(log.users_C) == 0
    assert (np.diff(log.users_C) >= 0).all()
    assert (np.diff(log.times_C)[same_user] >= 0).all()
    assert log.times_C.min() >= START_S
    assert log.times_C.max() < START_S + SPAN_S
    assert len(np.unique(log.users_C * log.num_items + log.items_C)) == len(log)


def test_users_click_40_to_60_items_on_average_with_a_long_tail(log):
    clicks_U = np.diff(log.offsets)
    assert 40 < clicks_U.mean() < 60
    assert np.median(clicks_U) < 0.85 * clicks_U.mean()
    assert np.quantile(clicks_U, 0.99) > 3.5 * clicks_U.mean()


def test_the_top_fifth_of_items_takes_about_half_of_the_clicks(log):
    assert 0.42 < head_share(log.popularity_I) < 0.6
    # The same many clicks at random would leave the head little more than its fifth.
    chance = np.bincount(np.random.default_rng(0).integers(0, log.num_items, len(log)), minlength=log.num_items)
    assert head_share(chance) < 0.25


def same_niche(log: InteractionLog, world: World, items_C: np.ndarray) -> float:
    """Share of consecutive clicks of a user in one niche."""
    same_user = np.diff(log.users_C) == 0
    return float((np.diff(world.niche_I[items_C]) == 0)[same_user].mean())


def test_consecutive_clicks_are_close(log, world):
    # 40 niches: a random pair shares one about one time in 40, popularity makes it a little more.
    assert 0.2 < same_niche(log, world, log.items_C) < 0.6
    shuffled = np.random.default_rng(0).permutation(log.items_C)
    assert same_niche(log, world, shuffled) < 0.05


def overlap(log: InteractionLog, world: World, half_C: np.ndarray) -> float:
    """How alike a user's topics are in the two halves: 1 - total variation, mean over users."""
    topics_C = world.niche_I[log.items_C] // NICHES_PER_TOPIC
    counts = np.zeros((2, log.num_users, world.num_topics))
    np.add.at(counts, (half_C.astype(int), log.users_C, topics_C), 1.0)
    shares = counts / np.maximum(counts.sum(axis=2, keepdims=True), 1)
    enough = np.diff(log.offsets) >= 30
    return float(np.minimum(shares[0], shares[1]).sum(axis=1)[enough].mean())


def test_interests_drift(log, world):
    place_C = np.arange(len(log)) - log.offsets[log.users_C]
    later_C = place_C >= np.diff(log.offsets)[log.users_C] / 2
    by_session_C = place_C // 6 % 2 == 1  # halves of the same mix of early and late
    assert overlap(log, world, later_C) < overlap(log, world, by_session_C) - 0.1


def test_a_stale_cloud_misses_users_and_items(log, parts):
    late = parts.test.where(after_cut(log, parts))
    new = new_to_cloud(parts)[late.users_H].mean()
    assert len(late) > 0.5 * log.num_users
    assert 0.25 < new < 0.6
    seen_I = np.bincount(parts.cloud.items_C, minlength=log.num_items) > 0
    assert 0.05 < (~seen_I).mean() < 0.35


def hit_rate(scores_UI: np.ndarray, parts: Split) -> float:
    """HR@10 of the test clicks, full ranking without training items."""
    scores_UI[parts.train.users_C, parts.train.items_C] = -np.inf
    own_H = scores_UI[parts.test.users_H, parts.test.items_H]
    return float(((scores_UI[parts.test.users_H] > own_H[:, None]).sum(axis=1) < 10).mean())


def test_popularity_is_weak_and_recent_co_clicks_are_two_to_three_times_better(parts):
    train = parts.train
    shape = (train.num_users, train.num_items)
    popular = hit_rate(np.tile(train.popularity_I.astype(float), (shape[0], 1)), parts)
    weights = 0.8 ** (train.offsets[train.users_C + 1] - np.arange(len(train)))
    history = sparse.csr_matrix((weights, (train.users_C, train.items_C)), shape=shape)
    co_clicks = np.zeros((shape[1], shape[1]))
    for distance in range(1, 6):
        before, after = train.items_C[:-distance], train.items_C[distance:]
        same = train.users_C[:-distance] == train.users_C[distance:]
        np.add.at(co_clicks, (before[same], after[same]), 1.0)
    norm = np.sqrt(train.popularity_I + 1.0)
    close = hit_rate(history @ ((co_clicks + co_clicks.T) / np.outer(norm, norm)), parts)
    assert 0.03 < popular < 0.08
    assert 2 < close / popular < 4


def test_features_tell_the_topic_more_often_than_chance_but_not_the_niche(log, world):
    features = log.item_features_IF / np.linalg.norm(log.item_features_IF, axis=1, keepdims=True)
    alike = features @ features.T
    np.fill_diagonal(alike, -1)
    nearest = alike.argmax(axis=1)
    same_topic = (world.niche_I[nearest] // NICHES_PER_TOPIC == world.niche_I // NICHES_PER_TOPIC).mean()
    same_niche = (world.niche_I[nearest] == world.niche_I).mean()
    assert same_topic > 0.5  # chance: a tenth
    assert same_niche < 0.6
