"""Keyed randomness: a draw depends on its key only, and looks like chance."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.seeds import bits_at, bits_for, generator_for, key_for, uniforms_at, uniforms_for

KEYS = [(0, 0, 0, ""), (1, 0, 0, ""), (0, 1, 0, ""), (0, 0, 1, ""), (0, 0, 0, "x"), (11, 0, 0, ""), (1, 10, 0, "")]
ids_lists = st.lists(st.integers(0, 2**40), min_size=1, max_size=8, unique=True)


def test_keys_that_differ_in_any_part_differ():
    assert len({key_for(*key) for key in KEYS}) == len(KEYS)
    assert all(0 <= key_for(*key) < 2**64 for key in KEYS)


def test_a_key_never_changes_between_versions():
    # blake2b of b"1/2/3/use", 8 bytes, little end first; a change would make old runs impossible to repeat
    digest = hashlib.blake2b(b"1/2/3/use", digest_size=8).digest()
    assert key_for(1, 2, 3, "use") == int.from_bytes(digest, "little")


def test_splitmix_agrees_with_its_published_stream():
    # SplitMix64 of Steele, Lea and Flood 2014 with seed 1234567: as listed on Rosetta Code
    from fedquilt.seeds import _GOLDEN, _splitmix64

    states = np.uint64(1234567) + np.arange(1, 6, dtype=np.uint64) * _GOLDEN
    assert _splitmix64(states).tolist() == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_a_generator_repeats_itself_and_differs_from_the_others():
    draws = [tuple(generator_for(*key).random(3)) for key in KEYS]
    assert len(set(draws)) == len(KEYS)
    assert draws == [tuple(generator_for(*key).random(3)) for key in KEYS]


@given(ids_lists, st.integers(0, 2**32), st.integers(0, 1000), st.integers(1, 5), st.data())
def test_a_row_depends_on_its_own_client_id_only(ids, seed, round_, count, data):
    whole = bits_for(seed, round_, np.array(ids), "use", count)
    order = data.draw(st.permutations(range(len(ids))))
    assert (bits_for(seed, round_, np.array(ids)[order], "use", count) == whole[order]).all()
    for row, client_id in enumerate(ids):
        assert (bits_for(seed, round_, np.array([client_id]), "use", count)[0] == whole[row]).all()
    # and a longer row begins with the shorter one
    assert (bits_for(seed, round_, np.array(ids), "use", count + 3)[:, :count] == whole).all()


@given(ids_lists, st.integers(0, 2**32), st.integers(0, 1000), st.data())
def test_single_places_are_those_of_the_table(ids, seed, round_, data):
    places = np.array(data.draw(st.lists(st.integers(0, 20), min_size=len(ids), max_size=len(ids))))
    ids_M, rows = np.array(ids), np.arange(len(ids))
    assert (bits_at(seed, round_, ids_M, places, "use") == bits_for(seed, round_, ids_M, "use", 21)[rows, places]).all()
    assert (uniforms_at(seed, ids_M, places, "use") == uniforms_for(seed, 0, ids_M, "use", 21)[rows, places]).all()


@pytest.mark.parametrize(
    "changed", [{"run_seed": 1}, {"round_": 1}, {"use": "other"}], ids=lambda changed: next(iter(changed))
)
def test_another_seed_round_or_use_gives_unrelated_numbers(changed):
    given_ = {"run_seed": 0, "round_": 0, "client_ids": np.arange(2000), "use": "use", "count": 5}
    left, right = uniforms_for(**given_).ravel(), uniforms_for(**{**given_, **changed}).ravel()
    assert abs(np.corrcoef(left, right)[0, 1]) < 4 / np.sqrt(left.size)
    assert not (left == right).any()


def kolmogorov(sample: np.ndarray) -> float:
    """sqrt(n) · sup |F_n - F| against the uniform distribution; above 1.95 with probability 0.001."""
    ordered, n = np.sort(sample), sample.size
    return float(np.sqrt(n) * np.abs(ordered - (np.arange(n) + 0.5) / n).max())


def test_uniforms_are_uniform_along_clients_and_along_a_row():
    along_clients = uniforms_for(0, 1, np.arange(20_000), "use", 1).ravel()
    along_row = uniforms_for(0, 1, np.array([7]), "use", 20_000).ravel()
    for sample in (along_clients, along_row):
        assert kolmogorov(sample) < 1.95
        assert kolmogorov(sample**1.05) > 1.95  # a slight bend would show
        assert abs(np.corrcoef(sample[1:], sample[:-1])[0, 1]) < 4 / np.sqrt(sample.size)
    assert along_row.min() >= 0
    assert along_row.max() < 1


def test_neighbouring_clients_draw_unrelated_rows():
    table = uniforms_for(0, 1, np.arange(2000), "use", 20)
    assert abs(np.corrcoef(table[1:].ravel(), table[:-1].ravel())[0, 1]) < 4 / np.sqrt(table.size)
    assert len(np.unique(table)) == table.size
