"""The digits benchmark: its data, its attacks, its loop, and the figures that others read."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn")

from experiments.results import read_results
from experiments.robustness import digits
from experiments.robustness.digits_attacks import ATTACKS, REFERENCE
from experiments.robustness.digits_world import CLASSES, COLLUDERS, HONEST, Scene, accuracy, partition
from experiments.robustness.digits_world import digits as parts

HONEST_HP = np.random.default_rng(0).normal(1, 1, (HONEST, 5)).astype(np.float32)


def scene(rule=lambda rows: rows.mean(axis=0)):
    return Scene(HONEST_HP, 2 * HONEST_HP, 0, np.random.default_rng(0), rule)


def mean(rows_KP, round_):
    return rows_KP.mean(axis=0)


def test_validation_digits_are_no_test_digits():
    pixels, _, tested, _ = parts("test")
    trained, _, validated, _ = parts("validation")
    assert len(pixels) + len(tested) == 1797
    assert len(trained) + len(validated) == len(pixels)


@pytest.mark.parametrize("split", digits.SPLITS)
def test_every_digit_is_one_clients(split):
    labels = parts("test")[1]
    places = np.concatenate(partition(labels, split, seed=1))
    assert sorted(places.tolist()) == list(range(len(labels)))


def test_sorted_clients_have_one_or_two_digits_and_dirichlet_clients_more():
    labels = parts("test")[1]
    kinds = {split: [len(set(labels[p])) for p in partition(labels, split, 0)] for split in digits.SPLITS}
    assert max(kinds["sorted"]) <= 2 < np.median(kinds["dirichlet"]) <= CLASSES


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "none"])
def test_an_attack_sends_a_row_for_every_colluder(name):
    rows_MP = ATTACKS[name](scene())
    assert rows_MP.shape == (COLLUDERS, HONEST_HP.shape[1])
    assert np.isfinite(rows_MP).all()


def test_inner_product_manipulation_is_minus_ten_times_the_mean():
    assert REFERENCE["ipm-10"](scene())[0] == pytest.approx(-10 * HONEST_HP.mean(axis=0))


def test_the_patient_push_the_same_way_in_every_round():
    now = scene()
    first_P = ATTACKS["patient-1"](now)[0] - HONEST_HP.mean(axis=0)
    now.honest_HP = -HONEST_HP
    assert ATTACKS["patient-1"](now)[0] + HONEST_HP.mean(axis=0) == pytest.approx(first_P, rel=1e-5)


def test_honest_clients_learn_and_a_mean_under_attack_does_not():
    assert accuracy(mean, None, "dirichlet", 0, "validation", rounds=40) > 0.7
    assert accuracy(mean, REFERENCE["ipm-10"], "dirichlet", 0, "validation", rounds=40) < 0.3


def test_a_peek_leaves_the_rules_state_as_it_is():
    rule = digits.OurRule(digits.DEFAULT, {}, seed=0)
    rule(HONEST_HP, 0)
    assert rule.peek(HONEST_HP, 1) == pytest.approx(rule(HONEST_HP, 1))


def row(attack, accuracy, split="dirichlet", who="ours", seed=0):
    head = ("test", split, who, digits.DEFAULT, {}, attack, seed)
    return {**dict(zip(digits.KEY, head, strict=True)), "accuracy": accuracy}


def test_the_headline_is_the_worst_attack_of_the_means_over_seeds():
    rows = [row(name, 0.95, seed=seed) for name in REFERENCE for seed in (0, 1)]
    rows += [row("alie", 0.8, seed=0), row("mimic", 0.9, who="byzfl")]
    rows = list({repr([r[name] for name in digits.KEY]): r for r in rows}.values())
    # Hand: alie is the mean of 0.8 and 0.95; mimic differs by 0.95 - 0.9
    found = digits.headline(rows)
    assert found["worst_dirichlet"] == pytest.approx(0.875)
    assert found["largest_gap_to_byzfl"] == pytest.approx(0.05)
    assert "worst_sorted" not in found


def test_rows_that_the_file_holds_are_not_run_again(tmp_path):
    told = ["--rules", "mean", "--attacks", "alie", "--seeds", "0", "--rounds", "2", "--json", str(tmp_path / "d.json")]
    digits.main(told)
    first = read_results(tmp_path / "d.json")
    digits.main(told)
    assert read_results(tmp_path / "d.json") == first
    assert len(first["rows"]) == len(digits.SPLITS)
