"""A node whose answer to an evaluation cannot be right loses its place, and the run goes on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from tiny_recommender import tiny_run

from client.app import make_client_app
from client.recommend import RecommendTask, make_task
from fedquilt.graphs.datasets import load_split
from fedquilt.runs import RunFolder
from server.examine import MAX_LIST, examiner
from server.simulate import simulate

CONFIG = tiny_run(federation={"rounds": 1})
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def split():
    return load_split(CONFIG.data, CONFIG.split)


def honest(split, part="test") -> tuple[np.ndarray, Arrays]:
    held_out = getattr(split, part)
    nobody = np.zeros(len(held_out), np.int64)
    arrays = {"items": held_out.items_H, "greater_base": nobody, "ties_base": nobody}
    return held_out.users_H, {**arrays, "top_base": np.tile(np.arange(20, dtype=np.int32), (len(held_out), 1))}


def changed(array: np.ndarray, value: float, dtype: type = np.int64) -> np.ndarray:
    copy = array.astype(dtype)
    copy.flat[0] = value
    return copy


FAULTS: Mapping[str, tuple[Callable[[Arrays], Arrays], str]] = {
    "a negative rank": (lambda a: {"greater_base": changed(a["greater_base"], -1)}, "'greater_base' holds -1 to 0"),
    "negative ties": (lambda a: {"ties_base": changed(a["ties_base"], -9)}, "'ties_base' holds -9"),
    "a rank beyond the catalogue": (
        lambda a: {"greater_base": changed(a["greater_base"], 10**6)},
        "holds 0 to 1000000",
    ),
    "counts that add up to too many": (
        lambda a: {"greater_base": changed(a["greater_base"], 60), "ties_base": changed(a["ties_base"], 60)},
        r"ranks a click at 121 of \d+ candidates",
    ),
    "counts that overflow": (
        lambda a: {"ties_base": changed(a["ties_base"], np.iinfo(np.int64).max)},
        "'ties_base' holds",
    ),
    "an item beyond the catalogue": (lambda a: {"items": changed(a["items"], 10**15)}, "'items' holds"),
    "an item that was not held out": (lambda a: {"items": (a["items"] + 1) % 100}, "not held out"),
    "a number that is not finite": (
        lambda a: {"greater_base": changed(a["greater_base"], np.nan, float)},
        "holds float64, expected integers",
    ),
    "a list of an item beyond the catalogue": (
        lambda a: {"top_base": changed(a["top_base"], 2**40)},
        "'top_base' holds 0 to 1099511627776",
    ),
    "a list of a negative item": (lambda a: {"top_base": changed(a["top_base"], -1)}, "'top_base' holds -1"),
    "a list with an item twice": (lambda a: {"top_base": np.zeros_like(a["top_base"])}, "shows a user an item twice"),
    "flat lists": (lambda a: {"top_base": a["top_base"][:, 0]}, r"'top_base' has shape \(\d+,\)"),
    "long lists": (lambda a: {"top_base": np.zeros((len(a["items"]), MAX_LIST + 1), int)}, "1 to 1000"),
    "three axes": (lambda a: {"items": a["items"][:, None, None]}, "'items' has shape"),
    "counts of another shape": (lambda a: {"ties_base": a["ties_base"][:, None]}, "'ties_base' has shape"),
    "greater without ties": (lambda a: {"greater_other": a["greater_base"]}, "no array 'ties_other'"),
    "ties without greater": (lambda a: {"ties_other": a["ties_base"]}, "'ties_other' has no 'greater_other'"),
    "an array of nobody's": (lambda a: {"group_items": a["items"]}, "'group_items' is none"),
    "a canary that wins": (
        lambda a: {"greater_canary": a["greater_base"], "ties_canary": a["ties_base"]},
        "constant scores do not tie",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_right_is_told(split, fault):
    users_H, arrays = honest(split)
    change, words = FAULTS[fault]
    told = examiner(lambda: split)("test", users_H, {**arrays, **change(arrays)})
    assert re.search(words, told), told


def test_arrays_that_are_not_there_are_told(split):
    users_H, arrays = honest(split)
    examine = examiner(lambda: split)
    assert "no array 'items'" in examine("test", users_H, {})
    assert "no variant" in examine("test", users_H, {"items": arrays["items"]})
    assert "no array 'ties_base'" in examine("test", users_H, {k: v for k, v in arrays.items() if k != "ties_base"})


@pytest.mark.parametrize("part", ["valid", "test"])
def test_an_honest_answer_passes(split, part):
    assert examiner(lambda: split)(part, *honest(split, part)) == ""


def test_a_click_answered_twice_is_told(split):
    users_H, arrays = honest(split)
    twice = {name: np.concatenate([array, array[:1]]) for name, array in arrays.items()}
    assert "answered twice" in examiner(lambda: split)("test", np.append(users_H, users_H[0]), twice)


class Lies(RecommendTask):
    """Ranks below zero, from one node of three."""

    def evaluate(self, *arguments):
        arrays = dict(super().evaluate(*arguments))
        return {**arrays, "greater_base": arrays["greater_base"] - 10**6}


def one_liar(config, partition_id, num_partitions):
    task = make_task(config, partition_id, num_partitions)
    return Lies(config, task.split, task.client_ids_U) if partition_id == 1 else task


def test_a_lying_node_loses_its_place_and_the_others_get_their_result(tmp_path, split):
    made = RunFolder.create(tmp_path, CONFIG)
    results = simulate(CONFIG, made, make_client_app(one_liar))
    assert results["answered"] == int((split.test.users_H % 3 != 1).sum())
    (reason,) = results["refused"]
    assert reason.startswith("partition 1: array 'greater_base' holds -1000000")
    assert all(len(record["refused"]) == 1 for record in made.records("evaluation"))
