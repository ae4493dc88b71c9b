"""Evaluation tables from what devices answered: groups, canary, and the refusal of answers that cannot be right."""

from __future__ import annotations

import numpy as np
import pytest

from fedquilt.config import SplitConfig, load
from fedquilt.errors import FederationError
from fedquilt.graphs.groups import TAIL, item_groups
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import split_log
from fedquilt.metrics import MetricError, rank_counts
from fedquilt.runs import RunFolder
from server.evaluate import evaluate, evaluation_tables, num_candidates, seen_items, tables_of

USERS, ITEMS, CLICKS = 60, 150, 8
KS = (5, 10)


@pytest.fixture(scope="module")
def log():
    rng = np.random.default_rng(3)
    items = np.concatenate([rng.choice(ITEMS, CLICKS, replace=False) for _ in range(USERS)])
    times = np.tile(np.arange(CLICKS), USERS) + np.repeat(np.arange(USERS) % 7, CLICKS)
    return InteractionLog("tiny", np.repeat(np.arange(USERS), CLICKS), items, USERS, ITEMS, times.astype(float))


def split_by(log, protocol="loo-full", **options):
    return split_log(log, SplitConfig(protocol=protocol, **options))


def answers(split, scores_UI, part="test", variant="base"):
    held_out = getattr(split, part)
    greater, ties = rank_counts(scores_UI, held_out.items_H, held_out.users_H, seen_items(split, part))
    return {
        "client_ids": held_out.users_H,
        "items": held_out.items_H,
        f"greater_{variant}": greater,
        f"ties_{variant}": ties,
    }


def know_all(split, part="test"):
    scores_UI = np.zeros((USERS, ITEMS))
    scores_UI[getattr(split, part).users_H, getattr(split, part).items_H] = 1
    return scores_UI


@pytest.mark.parametrize("part", ["valid", "test"])
def test_a_scorer_that_knows_the_answer_has_one_everywhere(log, part):
    split = split_by(log)
    result = evaluation_tables(answers(split, know_all(split, part), part), split, KS, part)
    assert result["tables"]["base"]["all"]["NDCG@5"] == 1
    assert result["answered"] == result["held_out"] == result["users"] == USERS


def test_a_constant_scorer_is_at_the_stated_chance(log):
    split = split_by(log)
    result = evaluation_tables(answers(split, np.zeros((USERS, ITEMS))), split, KS)
    assert result["tables"]["base"]["all"]["HR@10"] == pytest.approx(result["chance"]["HR@10"])
    assert result["chance"]["HR@10"] == pytest.approx(10 / (ITEMS - CLICKS + 1))


def test_validation_clicks_do_not_compete_in_the_test(log):
    split = split_by(log)
    assert (num_candidates(split, "valid") == ITEMS - (CLICKS - 2)).all()
    assert (num_candidates(split, "test") == ITEMS - (CLICKS - 1)).all()


def test_several_held_out_clicks_of_a_user_count_as_one_user(log):
    split = split_by(log, "rand-60-20-20")
    wide = split_by(log, "rand-60-20-20").test
    result = evaluation_tables(answers(split, know_all(split)), split, KS)
    assert result["answered"] == len(wide)
    assert result["tables"]["base"]["all"]["Recall@5"] == 1


def test_loo99_has_a_hundred_candidates(log):
    split = split_by(log, "loo99")
    held_out = split.test
    arrays = {
        "client_ids": held_out.users_H,
        "items": held_out.items_H,
        "greater_base": np.zeros(USERS, int),
        "ties_base": np.full(USERS, 99),
    }
    result = evaluation_tables(arrays, split, KS)
    assert result["chance"]["HR@10"] == pytest.approx(0.1)
    assert result["tables"]["base"]["all"]["HR@10"] == pytest.approx(0.1)


def test_item_groups_are_those_of_the_training_clicks(log):
    split = split_by(log)
    result = evaluation_tables(answers(split, know_all(split)), split, KS)
    tail = int((item_groups(split.train)[split.test.items_H] == TAIL).sum())
    assert result["tables"]["base"]["items/tail"]["users"] == tail


def test_users_new_to_the_cloud_have_their_own_row(log):
    split = split_by(log, cloud_share=0.0)
    table = evaluation_tables(answers(split, know_all(split)), split, KS)["tables"]["base"]
    assert table["new-to-cloud"]["users"] == USERS
    assert "known-to-cloud" not in table


def test_shown_lists_give_coverage_and_inequality(log):
    split = split_by(log)
    arrays = answers(split, know_all(split)) | {"top_base": np.tile(np.arange(10), (USERS, 1))}
    table = evaluation_tables(arrays, split, KS)["tables"]["base"]["all"]
    assert table["coverage@10"] == pytest.approx(10 / ITEMS)
    assert table["gini@10"] == pytest.approx(1 - 10 / ITEMS)


def test_answers_in_any_order_give_the_same_table(log):
    split = split_by(log)
    arrays = answers(split, np.random.default_rng(0).random((USERS, ITEMS)))
    order = np.random.default_rng(1).permutation(USERS)
    shuffled = {name: array[order] for name, array in arrays.items()}
    straight, mixed = (evaluation_tables(part, split, KS)["tables"]["base"]["all"] for part in (arrays, shuffled))
    assert straight == pytest.approx(mixed)


def test_the_stored_file_rebuilds_the_tables_without_the_log(log, tmp_path):
    run = RunFolder.create(tmp_path, load())
    split = split_by(log)
    result = evaluate(run, answers(split, know_all(split)), split, KS)
    assert tables_of(run.read_arrays("evaluation.npz"), KS) == result


def test_padded_rows_of_users_say_the_same_as_one_row_a_click(log):
    split = split_by(log, "rand-60-20-20")
    # one click a user is held out of 8; a second, absent one is padding
    arrays = answers(split, np.random.default_rng(0).random((USERS, ITEMS)))
    padded = {
        name: array if name == "client_ids" else np.stack([array, np.full(USERS, -1)], axis=1).astype(np.float32)
        for name, array in arrays.items()
    }
    assert evaluation_tables(padded, split, KS) == evaluation_tables(arrays, split, KS)


# --- what is refused ---


def test_an_answer_for_a_click_that_was_not_held_out_is_refused(log):
    split = split_by(log)
    arrays = answers(split, know_all(split))
    arrays["items"] = (arrays["items"] + 1) % ITEMS
    with pytest.raises(FederationError, match="not held out"):
        evaluation_tables(arrays, split, KS)


def test_a_click_that_is_answered_twice_is_refused(log):
    split = split_by(log)
    twice = {name: np.concatenate([array, array[:1]]) for name, array in answers(split, know_all(split)).items()}
    with pytest.raises(FederationError, match="answered twice"):
        evaluation_tables(twice, split, KS)


def test_a_rank_beyond_the_candidates_is_refused_with_its_client(log):
    split = split_by(log)
    arrays = answers(split, know_all(split))
    arrays["greater_base"] = arrays["greater_base"].copy()
    arrays["greater_base"][7] = ITEMS
    with pytest.raises(FederationError, match=f"client {split.test.users_H[7]} at {ITEMS + 1} of {ITEMS - CLICKS + 1}"):
        evaluation_tables(arrays, split, KS)


def test_devices_whose_constant_scorer_beats_chance_are_refused(log):
    split = split_by(log)
    arrays = answers(split, know_all(split))
    arrays |= {"greater_canary": np.zeros(USERS, int), "ties_canary": np.zeros(USERS, int)}
    with pytest.raises(MetricError, match="devices' constant scorer"):
        evaluation_tables(arrays, split, KS)


def test_an_honest_canary_is_checked_and_not_printed(log):
    split = split_by(log)
    arrays = answers(split, know_all(split)) | {
        name: array
        for name, array in answers(split, np.zeros((USERS, ITEMS)), variant="canary").items()
        if name.endswith("canary")
    }
    assert list(evaluation_tables(arrays, split, KS)["tables"]) == ["base"]
