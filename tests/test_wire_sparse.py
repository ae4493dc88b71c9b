"""Updates of which only the largest entries travel."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from client.privatise import privatise
from client.task import LocalUpdates
from fedquilt.sparse import dense_rows, halved
from fedquilt.wire import content_bytes, read_train_reply, write_train_reply

SOME_ROWS = arrays(np.float32, (3, 40), elements=st.floats(-1, 1, width=32))


def sent(rows_KP: np.ndarray, entries: int, norm: float = 10.0) -> np.ndarray:
    ids_K = np.arange(len(rows_KP))
    local = LocalUpdates(rows_KP.copy(), np.ones(len(rows_KP), np.int64))
    reply, _ = privatise(local, ids_K, norm, round_=1, spec_hash="s", upload_entries=entries)
    return read_train_reply(write_train_reply(reply), rows_KP.shape[1]).updates_KP


def test_only_the_largest_entries_arrive_at_their_places():
    rows = np.array([[0.5, -3.0, 0.0, 2.0], [1.0, 0.25, -0.125, 4.0]], np.float32)
    assert sent(rows, 2) == pytest.approx(np.array([[0, -3, 0, 2], [1, 0, 0, 4]]), rel=2e-3)


@settings(deadline=None)
@given(SOME_ROWS, st.integers(1, 39))
def test_no_row_grows_on_the_way(rows, entries):
    assert (np.linalg.norm(sent(rows, entries), axis=1) <= np.linalg.norm(rows, axis=1) * (1 + 1e-6)).all()


@settings(deadline=None)
@given(SOME_ROWS, st.integers(1, 39))
def test_what_arrives_is_within_half_precision_of_what_was_largest(rows, entries):
    cut_K1 = np.sort(np.abs(rows), axis=1)[:, [-entries]]
    arrived = sent(rows, entries)
    kept = np.abs(rows) > cut_K1
    assert np.allclose(arrived[kept], rows[kept], rtol=2e-3, atol=7e-5)  # float16 holds less below 6.1e-5


def test_as_many_entries_as_parameters_send_the_row_as_it_is():
    rows = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    assert np.array_equal(sent(rows, 6), rows)


def test_a_sparse_row_costs_four_bytes_an_entry():
    rows = np.random.default_rng(0).normal(size=(50, 20_000)).astype(np.float32)
    reply, _ = privatise(LocalUpdates(rows, np.ones(50, np.int64)), np.arange(50), 1.0, 1, "s", upload_entries=500)
    assert content_bytes(write_train_reply(reply)) / 50 == pytest.approx(4 * 500, rel=0.05)


def test_halving_never_enlarges_a_value():
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    assert (np.abs(halved(values).astype(np.float32)) <= np.abs(values)).all()


@pytest.mark.parametrize("places", [[[1, 1]], [[2, 1]], [[0, 9]]], ids=["twice", "backwards", "beyond"])
def test_places_that_a_device_cannot_mean_are_refused(places):
    with pytest.raises(ValueError, match="must increase"):
        dense_rows(np.array(places), np.ones((1, 2), np.float16), num_parameters=9)
