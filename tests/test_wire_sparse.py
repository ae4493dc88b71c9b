"""Updates of which only the largest entries travel."""

from __future__ import annotations

import contextlib
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from client.privatise import privatise
from client.task import LocalUpdates
from fedquilt.sparse import GAPS, LEVELS, SCALES, decode, encode
from fedquilt.wire import WireError, content_bytes, read_train_reply, write_train_reply

SOME_ROWS = arrays(np.float32, (3, 700), elements=st.floats(-1, 1, width=32))
STEP = 2 ** (1 / 8)  # between two magnitudes on the grid


def sent(rows_KP: np.ndarray, entries: int, norm: float = 1e6) -> np.ndarray:
    ids_K = np.arange(len(rows_KP))
    local = LocalUpdates(rows_KP.copy(), np.ones(len(rows_KP), np.int64))
    reply, _ = privatise(local, ids_K, norm, round_=1, spec_hash="s", upload_entries=entries)
    return read_train_reply(write_train_reply(reply), rows_KP.shape[1]).updates_KP


def packed(*values: int) -> np.ndarray:
    return np.frombuffer(zlib.compress(bytes(values)), np.uint8)


def test_only_the_largest_entries_arrive_at_their_places():
    rows = np.array([[0.5, -4.0, 0.0, 2.0], [1.0, 0.25, -0.125, 4.0]], np.float32)
    assert sent(rows, 2).tolist() == [[0, -4, 0, 2], [1, 0, 0, 4]]  # powers of two are on the grid


@settings(deadline=None)
@given(SOME_ROWS, st.integers(1, 699))
def test_no_entry_grows_or_changes_sign_on_the_way(rows, entries):
    arrived = sent(rows, entries)
    assert (np.abs(arrived) <= np.abs(rows)).all()
    assert (arrived * rows >= 0).all()


@settings(deadline=None)
@given(SOME_ROWS, st.integers(1, 699))
def test_what_arrives_is_within_one_step_of_what_was_largest(rows, entries):
    magnitudes = np.abs(rows)
    cut_K1 = np.sort(magnitudes, axis=1)[:, [-entries]]
    tiny_K1 = magnitudes.max(axis=1, keepdims=True) * 2**-15.5
    kept = (magnitudes > cut_K1) & (magnitudes > tiny_K1)
    arrived = np.abs(sent(rows, entries))
    assert (arrived[kept] * STEP >= magnitudes[kept] * (1 - 1e-5)).all()


def test_entries_far_apart_arrive_at_their_places():
    rows = np.zeros((3, 5_000), np.float32)
    rows[0, 0], rows[1, 4_999], rows[2, 255], rows[2, 256] = 1, 2, 4, 8
    assert np.array_equal(sent(rows, 2), rows)


def test_as_many_entries_as_parameters_send_the_row_as_it_is():
    rows = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 6)
    assert np.array_equal(sent(rows, 6), rows)


def test_a_row_of_zeros_arrives_as_zeros():
    assert not sent(np.zeros((2, 50), np.float32), 7).any()


def test_an_entry_costs_less_than_two_bytes():
    rows = np.random.default_rng(0).normal(size=(50, 20_000)).astype(np.float32)  # places as spread out as can be
    reply, _ = privatise(LocalUpdates(rows, np.ones(50, np.int64)), np.arange(50), 1.0, 1, "s", upload_entries=2_000)
    assert content_bytes(write_train_reply(reply)) / 50 / 2_000 < 1.75


@pytest.mark.parametrize("places", [[[1, 1]], [[2, 1]]], ids=["twice", "backwards"])
def test_places_must_increase(places):
    with pytest.raises(ValueError, match="must increase"):
        encode(np.array(places), np.ones((1, 2)), num_parameters=9)


GOOD = {GAPS: packed(3, 0), LEVELS: packed(0, 8), SCALES: np.ones(1, np.float32)}


def test_a_stream_by_hand_is_read():
    """Three places skipped, then none; levels 0 and 8 are the scale and half of it."""
    assert decode(GOOD, 1, 6).tolist() == [[0, 0, 0, 1, 0.5, 0]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({GAPS: packed(3, 5)}, "beyond 6"),
        ({LEVELS: packed(0)}, "2 places and 1 levels"),
        ({GAPS: packed(*[0] * 5_000)}, "at most"),
        ({LEVELS: np.frombuffer(zlib.compress(bytes(10**7)), np.uint8)}, "at most"),
        ({GAPS: packed(3, 0)[:-3]}, "not one whole stream"),
        ({GAPS: np.array([1, 2, 3], np.uint8)}, "gaps of a sparse update"),
    ],
    ids=["beyond the row", "levels missing", "more gaps than entries", "a bomb", "cut off", "no stream"],
)
def test_what_no_device_can_have_written_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        decode({**GOOD, **wrong}, 1, 6)


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(gaps, levels):
    """Both as streams, so that the bytes get past zlib."""
    found = {GAPS: packed(*gaps), LEVELS: packed(*levels), SCALES: np.array([1, np.nan], np.float32)}
    with contextlib.suppress(ValueError):
        assert decode(found, 2, 100).shape == (2, 100)


def test_a_reply_of_bytes_that_make_no_sense_is_a_wire_error():
    reply, _ = privatise(
        LocalUpdates(np.eye(3, 9, dtype=np.float32), np.ones(3, np.int64)), np.arange(3), 1.0, 1, "s", 2
    )
    with pytest.raises(WireError, match="beyond"):
        read_train_reply(write_train_reply(reply), 2)
