"""Personal patches on disk: what a round reads, what a replayed round reads, what is thrown away."""

from __future__ import annotations

import sqlite3
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import store as store_module
from client.store import PersonalStore
from fedquilt.errors import RunError

R = 2


@pytest.fixture
def store(tmp_path):
    store = PersonalStore(tmp_path, 0, "spec", R)
    yield store
    store.close()


def rows(*values) -> np.ndarray:
    return np.array([[value] * R for value in values], np.float32)


def ids(*values) -> np.ndarray:
    return np.array(values, np.int64)


def kept(store) -> list[tuple[int, int]]:
    with sqlite3.connect(store.path) as connection:
        return connection.execute("SELECT client_id, round FROM personal ORDER BY 1, 2").fetchall()


def test_a_user_without_a_patch_reads_zeros_and_makes_no_file(store):
    assert store.read(ids(3, 4), before_round=9).tolist() == [[0, 0], [0, 0]]
    assert not store.path.exists()


def test_rows_come_back_in_the_order_asked_for(store):
    store.write(ids(7, 3, 5), 1, rows(70, 30, 50), settled_round=0)
    assert store.read(ids(5, 9, 7), before_round=2).tolist() == rows(50, 0, 70).tolist()


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_leaves_its_user_the_patch_of_before(store, broken):
    store.write(ids(3, 5), 1, rows(1, 1), settled_round=0)
    store.write(ids(3, 5), 2, rows(2, broken), settled_round=1)
    assert store.read(ids(3, 5), before_round=9).tolist() == rows(2, 1).tolist()
    assert kept(store) == [(3, 1), (3, 2), (5, 1)]


def test_a_round_reads_what_was_written_before_it(store):
    store.write(ids(3), 1, rows(1), settled_round=0)
    store.write(ids(3), 4, rows(4), settled_round=0)
    assert [store.read(ids(3), before_round=r)[0, 0] for r in (1, 2, 4, 5)] == [0, 1, 1, 4]


def test_a_replayed_round_reads_what_it_read_the_first_time(store):
    for round_ in range(1, 7):
        first = store.read(ids(3), before_round=round_)
        store.write(ids(3), round_, rows(round_), settled_round=max(round_ - 2, 0))
        assert store.read(ids(3), before_round=round_).tolist() == first.tolist()


def test_rows_that_no_resume_would_read_are_dropped(store):
    for round_ in range(1, 7):
        store.write(ids(3), round_, rows(round_), settled_round=max(round_ - 2, 0))
    assert kept(store) == [(3, 4), (3, 5), (3, 6)]


def test_a_user_who_has_not_taken_part_for_long_keeps_the_last_row(store):
    store.write(ids(3, 4), 1, rows(1, 1), settled_round=0)
    store.write(ids(4), 50, rows(50), settled_round=48)
    assert store.read(ids(3, 4), before_round=51).tolist() == rows(1, 50).tolist()


@given(
    writes=st.lists(st.tuples(st.integers(1, 4), st.booleans()), min_size=1, max_size=12),
    every=st.integers(1, 4),
)
def test_a_resume_from_any_kept_checkpoint_sees_every_rounds_own_past(tmp_path_factory, writes, every):
    """Against a store that never drops: a checkpoint every ``every`` rounds, of which the last two are kept."""
    store = PersonalStore(tmp_path_factory.mktemp("store"), 0, "spec", R)
    truth: dict[int, float] = {}
    checkpoints = [0]
    for round_, (gap, takes_part) in enumerate(writes, start=1):
        if takes_part:
            store.write(ids(3), round_, rows(round_ * 10 + gap), settled_round=checkpoints[0])
            truth[round_] = round_ * 10 + gap
        if round_ % every == 0:
            checkpoints = [*checkpoints, round_][-2:]
    for replayed in range(checkpoints[0] + 1, len(writes) + 2):
        past = [value for round_, value in truth.items() if round_ < replayed]
        assert store.read(ids(3), before_round=replayed)[0, 0] == (past[-1] if past else 0)
    store.close()


def test_a_write_that_is_interrupted_leaves_no_part_of_it(store, monkeypatch):
    store.write(ids(3, 4), 1, rows(1, 1), settled_round=0)

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "_drop_superseded", fail)
    with pytest.raises(KeyboardInterrupt):
        store.write(ids(3, 4), 2, rows(2, 2), settled_round=0)
    store.close()
    assert kept(store) == [(3, 1), (4, 1)]


def test_partitions_specs_and_sizes_do_not_share_a_file(tmp_path):
    paths = {PersonalStore(tmp_path, p, s, r).path for p in (0, 1) for s in ("a", "b") for r in (2, 3)}
    assert len(paths) == 8


def test_rows_of_another_length_are_refused(store):
    with pytest.raises(RunError, match="shape"):
        store.write(ids(3), 1, np.zeros((1, R + 1), np.float32), settled_round=0)


def test_a_damaged_file_is_named(store):
    store.path.write_bytes(b"this is no database" * 100)
    with pytest.raises(RunError, match=store.path.name):
        store.read(ids(3), before_round=2)


def test_more_nodes_than_open_connections_are_served(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "MAX_OPEN", 2)
    stores = [PersonalStore(tmp_path, partition, "spec", R) for partition in range(5)]
    for partition, store in enumerate(stores):
        store.write(ids(3), 1, rows(partition), settled_round=0)
    assert [store.read(ids(3), before_round=2)[0, 0] for store in stores] == [0, 1, 2, 3, 4]
    assert len(store_module._open) <= 2
    for store in stores:
        store.close()


def test_twenty_thousand_users_with_a_thousand_numbers_each(tmp_path, record_property):
    store = PersonalStore(tmp_path, 0, "spec", 1024)
    everyone = np.arange(20_000)
    rows_KR = np.random.default_rng(0).standard_normal((20_000, 1024)).astype(np.float32)
    started = time.perf_counter()
    store.write(everyone, 1, rows_KR, settled_round=0)
    record_property("seconds to write", time.perf_counter() - started)
    started = time.perf_counter()
    back_KR = store.read(everyone, before_round=2)
    record_property("seconds to read", time.perf_counter() - started)
    record_property("bytes", sum(path.stat().st_size for path in tmp_path.iterdir()))
    assert back_KR.tobytes() == rows_KR.tobytes()
    store.close()
    assert store.path.stat().st_size < 1.2 * rows_KR.nbytes
