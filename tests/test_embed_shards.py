"""Shards: array-like, lazy, complete or not there, and checkable."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedquilt.errors import RunError
from server.scratch import Scratch
from server.shards import Shards, commit, find_shard, write_shard

ROWS_RF = np.arange(44, dtype=np.float32).reshape(11, 4)


def written(folder, rows_RF=ROWS_RF, at_once=4, **facts):
    folder.mkdir(parents=True, exist_ok=True)
    parts = [rows_RF[first : first + at_once] for first in range(0, len(rows_RF), at_once)]
    return commit(folder, [write_shard(folder, number, part) for number, part in enumerate(parts)], facts)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return written(tmp_path_factory.mktemp("shards"), model="abc")


@pytest.mark.parametrize(
    "index",
    [0, 10, -1, np.int64(5), slice(None), slice(3, 9), slice(9, 3), slice(None, None, -3), [4, 4, 0], [], [-1, -11]],
)
def test_rows_are_those_of_the_array(shards, index):
    np.testing.assert_array_equal(shards[index], ROWS_RF[np.array(index, int) if isinstance(index, list) else index])


@given(rows=st.lists(st.integers(-11, 10), max_size=30))
def test_any_rows_in_any_order_are_those_of_the_array(shards, rows):
    np.testing.assert_array_equal(shards[rows], ROWS_RF[np.array(rows, int)])


def test_a_mask_picks_rows(shards):
    mask = ROWS_RF[:, 0] % 8 == 0
    np.testing.assert_array_equal(shards[mask], ROWS_RF[mask])


def test_shards_know_their_shape_dtype_and_facts(shards):
    opened = Shards.open(shards.folder)
    assert (opened.shape, len(opened), opened.dtype, opened.facts) == ((11, 4), 11, np.float32, {"model": "abc"})
    np.testing.assert_array_equal(np.asarray(opened), ROWS_RF)


def test_parts_come_in_order_with_their_first_row(shards):
    parts = list(shards.parts())
    assert [first for first, _ in parts] == [0, 4, 8]
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), ROWS_RF)


@pytest.mark.parametrize("row", [11, -12])
def test_a_row_beyond_the_end_is_an_index_error(shards, row):
    with pytest.raises(IndexError):
        shards[row]


def test_a_mask_of_another_length_is_an_index_error(shards):
    with pytest.raises(IndexError):
        shards[np.ones(5, bool)]


def test_rows_can_be_changed_without_changing_the_file(shards):
    shards[:][:] = 0
    shards[[1, 2]][:] = 0
    np.testing.assert_array_equal(shards[:], ROWS_RF)


# --- whole or not there ---


def test_shards_without_a_manifest_are_not_complete(tmp_path):
    write_shard(tmp_path, 0, ROWS_RF)
    with pytest.raises(RunError, match="no complete vectors"):
        Shards.open(tmp_path)


def test_equal_rows_are_equal_files(tmp_path):
    assert write_shard(tmp_path, 3, ROWS_RF) == write_shard(tmp_path, 3, ROWS_RF.copy(), durable=True)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_finished_shard_is_found_and_a_damaged_one_is_not(tmp_path):
    shard = write_shard(tmp_path, 3, ROWS_RF)
    assert find_shard(tmp_path, 3, rows=11) == shard
    assert find_shard(tmp_path, 3, rows=12) is None
    assert find_shard(tmp_path, 4, rows=11) is None
    with (tmp_path / shard.file).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    assert find_shard(tmp_path, 3, rows=11) is None


def test_committing_drops_shards_of_before_and_what_a_kill_left(tmp_path):
    written(tmp_path, at_once=2)
    (tmp_path / ".00001.0123456789abcdef.tmp").write_bytes(b"half")
    new = written(tmp_path, ROWS_RF + 1)
    assert {path.name for path in tmp_path.iterdir()} == {"manifest.json", *(shard.file for shard in new.shards)}
    np.testing.assert_array_equal(new[:], ROWS_RF + 1)


@pytest.mark.parametrize("name", ["2024.npy", "00001-clicks.npy", ".5.tmp", "notes.txt"])
def test_committing_leaves_what_is_no_shard_alone(tmp_path, name):
    (tmp_path / name).write_bytes(b"a person's own")
    written(tmp_path)
    assert (tmp_path / name).read_bytes() == b"a person's own"


def test_shards_opened_before_they_were_replaced_can_still_be_read(tmp_path):
    old = written(tmp_path)
    old.take(np.arange(11))
    written(tmp_path, ROWS_RF + 1)
    np.testing.assert_array_equal(old.take(np.arange(11)), ROWS_RF)


def test_verify_names_the_damaged_shard(tmp_path):
    shards = written(tmp_path)
    shards.verify()
    with (tmp_path / shards.shards[1].file).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"!")
    with pytest.raises(RunError, match=f"damaged since it was written: {shards.shards[1].file}"):
        shards.verify()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder, file: (folder / file).unlink(), "cannot be read"),
        (lambda folder, file: (folder / file).write_bytes((folder / file).read_bytes()[:-8]), "cannot be read"),
        (lambda folder, file: np.save((folder / file).open("wb"), ROWS_RF[:2]), "the manifest says"),
        (lambda folder, file: (folder / "manifest.json").write_text('{"format": '), "is damaged"),
        (lambda folder, file: (folder / "manifest.json").write_text('{"format": "other"}'), "another version"),
        (lambda folder, file: (folder / "manifest.json").write_text("[]"), "is damaged"),
    ],
)
def test_damage_is_told_when_shards_are_opened(tmp_path, damage, message):
    damage(tmp_path, written(tmp_path).shards[0].file)
    with pytest.raises(RunError, match=message):
        Shards.open(tmp_path)


def test_a_manifest_that_names_a_file_elsewhere_is_refused(tmp_path):
    written(tmp_path / "a")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    manifest["shards"][0]["file"] = "../b.npy"
    np.save(tmp_path / "b.npy", ROWS_RF[:4])
    (tmp_path / "a" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="is damaged"):
        Shards.open(tmp_path / "a")


# --- between steps ---


def test_scratch_rows_are_mapped_and_read_as_written(tmp_path):
    scratch = Scratch(tmp_path / "s", ROWS_RF.shape)
    scratch.make()
    scratch.write(1, 4, ROWS_RF[4:])
    scratch.write(0, 0, ROWS_RF[:4])
    np.testing.assert_array_equal(scratch.map(), ROWS_RF)
    np.testing.assert_array_equal(scratch.between(3, 6), ROWS_RF[3:6])


def test_a_scratch_span_is_finished_once_its_bytes_are_those_of_its_mark(tmp_path):
    scratch = Scratch(tmp_path / "s", ROWS_RF.shape)
    scratch.make()
    assert not scratch.finished(0, 0, 4)
    scratch.write(0, 0, ROWS_RF[:4])
    scratch.make()  # what is there stays
    assert scratch.finished(0, 0, 4)
    scratch.write(1, 3, ROWS_RF[4:])  # over the last row of span 0
    assert not scratch.finished(0, 0, 4)


def test_a_dropped_scratch_leaves_nothing(tmp_path):
    scratch = Scratch(tmp_path / "s", ROWS_RF.shape)
    scratch.make()
    scratch.write(0, 0, ROWS_RF)
    scratch.drop()
    scratch.drop()
    assert not (tmp_path / "s").exists()
