"""Paired comparison: it finds effects, does not find what is not there, and refuses to compare the incomparable."""

from __future__ import annotations

import numpy as np
import pytest

from fedquilt.config import load
from fedquilt.errors import RunError
from fedquilt.runs import RunFolder
from server.compare import bootstrap_interval, compare_runs, holm, over_seeds, paired

KS = (10,)


def stored_run(root, greater, variant="personal", protocol_hash="abc", users=None):
    run = RunFolder.create(root, load())
    users = np.arange(len(greater)) if users is None else np.asarray(users)
    run.write_arrays(
        "evaluation.npz",
        client_ids=users,
        **{f"greater_{variant}": np.asarray(greater), f"ties_{variant}": np.zeros(len(greater), int)},
        group_items=(users % 3).astype(np.int8),
        group_users=(users % 2 * 2).astype(np.int8),
        new_to_cloud=users < 5,
        protocol=np.array("loo-full"),
        protocol_hash=np.array(protocol_hash),
    )
    return run


def test_a_run_does_not_differ_from_itself(tmp_path):
    run = stored_run(tmp_path, np.arange(40))
    result = compare_runs(run, run, ("personal", "personal"), KS)
    row = result["metrics"]["NDCG@10"]
    assert (row["difference"], row["low"], row["high"], row["p"]) == (0, 0, 0, 1)


def test_the_difference_is_b_minus_a_over_all_users_and_by_group(tmp_path):
    worse, better = stored_run(tmp_path, np.full(40, 20)), stored_run(tmp_path, np.arange(40) % 2 * 20)
    result = compare_runs(worse, better, ("personal", "personal"), KS)
    assert result["metrics"]["HR@10"]["difference"] == pytest.approx(0.5)
    assert result["groups"]["users/head"]["difference"] == pytest.approx(1)
    assert result["groups"]["users/tail"]["difference"] == 0
    assert result["groups"]["new-to-cloud"]["users"] == 5


def test_users_are_paired_by_id_not_by_place(tmp_path):
    ranks = np.random.default_rng(0).integers(0, 20, 40)
    first = stored_run(tmp_path, ranks)
    second = stored_run(tmp_path, ranks[::-1], users=np.arange(40)[::-1])
    assert compare_runs(first, second, ("personal", "personal"), KS)["metrics"]["NDCG@10"]["worse"] == 0


def test_users_of_only_one_run_are_counted_and_left_out(tmp_path):
    first, second = stored_run(tmp_path, np.zeros(40, int)), stored_run(tmp_path, np.zeros(30, int))
    result = compare_runs(first, second, ("personal", "personal"), KS)
    assert (result["users"], result["only_in_one"]) == (30, 10)


def test_runs_under_different_protocols_are_not_compared(tmp_path):
    first, second = stored_run(tmp_path, [0]), stored_run(tmp_path, [0], protocol_hash="xyz")
    with pytest.raises(RunError, match=r"abc.*xyz"):
        compare_runs(first, second, ("personal", "personal"), KS)


def test_a_variant_that_is_not_there_is_named_with_those_that_are(tmp_path):
    run = stored_run(tmp_path, [0, 1])
    with pytest.raises(RunError, match=r"no variant 'global'; it has personal"):
        compare_runs(run, run, ("global", "personal"), KS)


def test_a_metric_that_is_not_there_is_named_with_those_that_are(tmp_path):
    run = stored_run(tmp_path, [0, 1])
    with pytest.raises(RunError, match=r"NDCG@7.*NDCG@10"):
        compare_runs(run, run, ("personal", "personal"), KS, metric="NDCG@7")


def test_a_shift_of_a_fifth_of_the_noise_is_found_and_no_shift_is_not():
    rng = np.random.default_rng(7)
    noise_U = rng.normal(size=2000)
    found, absent = (paired(np.zeros((2000, 1)), noise_U[:, None] + shift)[0] for shift in (0.2, 0.0))
    assert found["p"] < 1e-6
    assert found["low"] > 0
    assert absent["p"] > 1e-3
    assert absent["low"] < 0 < absent["high"]


def test_holms_adjusted_p_values_by_hand():
    # sorted .005 .01 .03 .04, times 4 3 2 1: .02 .03 .06 .04; none below the one before: .02 .03 .06 .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.7]) == [1, 1]
    assert holm([0.02]) == [0.02]


def test_among_many_metrics_without_an_effect_few_comparisons_find_one():
    rng = np.random.default_rng(5)
    raw, adjusted = [], []
    for _ in range(200):
        p = [row["p"] for row in paired(np.zeros((60, 12)), rng.normal(size=(60, 12)), resamples=1)]
        raw.append(min(p) < 0.05)
        adjusted.append(min(holm(p)) < 0.05)
    assert np.mean(raw) > 0.3  # 1 - .95^12 = .46
    assert np.mean(adjusted) < 0.11  # .05 and four standard errors


def test_every_row_of_a_comparison_is_corrected_for_all_of_them(tmp_path):
    worse, better = stored_run(tmp_path, np.full(40, 20)), stored_run(tmp_path, np.arange(40) % 2 * 20)
    result = compare_runs(worse, better, ("personal", "personal"), KS)
    rows = [*result["metrics"].values(), *result["groups"].values()]
    assert result["tests"] == len(rows)
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])
    assert max(row["p_holm"] / row["p"] for row in rows) > 4


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(11)
    intervals = [bootstrap_interval(rng.exponential(size=(150, 1)), resamples=200) for _ in range(200)]
    covered = np.mean([low <= 1 <= high for low, high in intervals])
    assert 0.87 <= covered <= 0.99  # 0.94 is known of percentiles at n = 150; four standard deviations are 0.06
    assert np.mean([low <= 0.75 <= high for low, high in intervals]) < 0.5  # it must also exclude


def test_the_interval_is_the_same_every_time():
    values = np.arange(50.0)[:, None]
    assert bootstrap_interval(values) == bootstrap_interval(values)


def test_mean_and_deviation_over_seeds_by_hand():
    tables = [{"personal": {"all": {"HR@10": value, "users": 5}}, "extra": {}} for value in (0.1, 0.2, 0.3)]
    leaf = over_seeds(tables)["personal"]["all"]["HR@10"]
    assert leaf["mean"] == pytest.approx(0.2)
    assert leaf["std"] == pytest.approx(0.1)  # n - 1 in the denominator
    assert leaf["seeds"] == 3


def test_what_one_seed_lacks_is_left_out():
    assert over_seeds([{"a": 1.0, "b": 1.0}, {"a": 2.0}]).keys() == {"a"}
