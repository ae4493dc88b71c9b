"""The robustness study: which rows it plans, its headline figures, its tables. Rows by hand; nothing is simulated."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from client.attacks.contract import make_attack
from experiments.robustness.headline import headline, verdicts
from experiments.robustness.readme import judged, tables
from experiments.robustness.run import ATTACKS, DATASETS, HERE, KEY, PIPELINES, cells
from fedquilt.config import load
from strategies.aggregation import make_aggregation

RULE = "median"
PROTOCOL = {"seeds": "0", "datasets": "bazaar", "fractions": "0.2", "tolerate": 0.3, "set": []}


def row(rule: str, attack: str, ndcg: float, er10: float = 0.0, **given: Any) -> dict[str, Any]:
    planned = {"dataset": "d", "targets": "tail", "seed": 0, "options": {}, "malicious": 0.2}
    measured = {
        "test": {"base": {"NDCG@10": 0.1}, "global": {"NDCG@10": ndcg, "NDCG@10 tail": ndcg, "ER@10": er10}},
        "trajectory": {"ER@10": {"max": er10}},
        "rejected": {"honest": None, "honest tail": None},
        "seconds_a_round": 0.25,
    }
    return {**planned, **measured, "rule": rule, "attack": attack, **given}


CLEAN = [row("mean", "none", 0.2), row(RULE, "none", 0.18)]


def planned(attacks: str, targets: str, rules: str = "mean") -> list[dict[str, Any]]:
    return list(cells(Namespace(**PROTOCOL, attacks=attacks, targets=targets, rules=rules)))


def test_what_a_rule_costs_without_attackers_is_a_share_of_the_means_gain():
    # (0.2 - 0.18) / (0.2 - 0.1)
    assert headline(CLEAN, RULE)["clean_cost"] == pytest.approx(0.2)


def test_the_cost_is_told_log_by_log():
    other = [row("mean", "none", 0.2, dataset="e"), row(RULE, "none", 0.19, dataset="e")]
    assert "0.200 on d beside `mean`; 0.100 on e beside `mean`." in judged(CLEAN + other, RULE)


def test_no_cost_is_told_where_the_mean_itself_gains_nothing():
    assert "clean_cost" not in headline([row("mean", "none", 0.101), row(RULE, "none", 0.1)], RULE)


def test_the_worst_attack_is_the_one_that_costs_most():
    attacked = [row(RULE, "ipm", 0.09), row(RULE, "alie", 0.17)]
    assert headline(CLEAN + attacked, RULE)["worst_ndcg_loss_20pct"] == pytest.approx(0.5)  # 1 - 0.09 / 0.18


def test_exposure_is_compared_with_that_of_the_same_targets():
    head = [row(RULE, "none", 0.18, 0.49, targets="head"), row(RULE, "pip-attack", 0.18, 0.49, targets="head")]
    tail = [row(RULE, "pip-attack", 0.18, 0.03)]
    assert headline(CLEAN + head + tail, RULE)["worst_er10_ratio_20pct"] == pytest.approx(4)  # 0.03 + 0.01 over 0.01


def test_an_attack_without_its_clean_run_is_not_compared():
    elsewhere = [row(RULE, "ipm", 0.01, dataset="other")]
    assert "worst_ndcg_loss_20pct" not in headline(CLEAN + elsewhere, RULE)


def test_a_trial_with_an_override_is_not_in_the_headline():
    trial = row(RULE, "ipm", 0.01, set=["federation.rounds=1"])
    assert headline([*CLEAN, row(RULE, "ipm", 0.09), trial], RULE)["worst_ndcg_loss_20pct"] == pytest.approx(0.5)


def test_rows_that_were_told_of_another_share_are_compared_with_each_other_only():
    told = [row(RULE, "none", 0.1, tolerate=0.1), row(RULE, "ipm", 0.09, tolerate=0.1)]
    assert headline([*CLEAN, *told], RULE)["worst_ndcg_loss_20pct"] == pytest.approx(0.1)


def test_an_attack_without_a_target_is_run_once_whatever_the_targets():
    attacks = [(cell["attack"], cell["targets"]) for cell in planned("ipm,pip-attack,none", "tail,head")]
    assert attacks == [
        ("none", "tail"), ("none", "head"), ("ipm", "tail"), ("pip-attack", "tail"), ("pip-attack", "head")
    ]  # fmt: skip


def test_an_attack_is_run_under_every_rule_before_the_next_attack():
    order = [(cell["attack"], cell["rule"]) for cell in planned("none,ipm", "tail", "mean,median")]
    assert order == [("none", "mean"), ("none", "median"), ("ipm", "mean"), ("ipm", "median")]


def test_a_table_shows_a_dash_where_nothing_was_run():
    table = tables([*CLEAN, row(RULE, "ipm", 0.09)], "d")
    assert "| ipm | 0.0900 | – |" in table


def test_a_cell_of_three_seeds_has_an_interval():
    seeds = [row(RULE, "ipm", ndcg, seed=seed) for seed, ndcg in enumerate((0.08, 0.09, 0.1))]
    # t of 2 degrees at 97.5 % is 4.3027; 4.3027 * 0.01 / sqrt(3) = 0.0248
    assert "| ipm | 0.0900 ± 0.0248 |" in tables(seeds, "d")


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("name", PIPELINES)
def test_what_a_rule_comes_with_can_be_configured_on_every_log(name, dataset):
    rule, its = PIPELINES[name]
    config = load(HERE / "configs" / DATASETS[dataset], [f"federation.aggregator={rule}", *its])
    made = make_aggregation(config.federation)
    assert type(made.rule).__name__.lower() == rule.replace("-", "")


def test_every_attack_of_the_study_can_be_made():
    for attack, options in ATTACKS.values():
        assert attack == "none" or make_attack(attack, options).source


def test_other_shares_and_head_targets_have_tables_of_their_own():
    few, head = row(RULE, "ipm", 0.15, malicious=0.01), row(RULE, "ipm", 0.16, targets="head")
    text = tables([*CLEAN, row(RULE, "ipm", 0.14), few, head], "d")
    usual, others, heads = (
        text.index(cell) for cell in ("| ipm | 0.1400 |", "| ipm 1.0% | 0.1500 |", "| ipm | 0.1600 |")
    )
    assert usual < others < heads


def test_evasion_is_told_by_how_much_was_inserted():
    tried = [
        row(RULE, "evasion-clicks", 0.15, seed=seed, evasion={"success": success, "users": 4, "budget": 2})
        for seed, success in enumerate(([0.0, 0.25, 0.5], [0.0, 0.75, 1.0]))
    ]
    assert f"| evasion-clicks | {RULE} | 0.000 | 0.500 | 0.750 |" in tables(tried, "d")


def test_a_slow_row_does_not_make_a_rule_slow():
    rows = [row(RULE, "none", 0.1, seed=seed, seconds_a_round=seconds) for seed, seconds in enumerate((0.2, 0.3, 90.0))]
    rows += [row(RULE, "adaptive", 0.1, seconds_a_round=60.0)]  # most of it the attacker's search
    assert f"| {RULE} |\n| --- |\n| 0.300 |" in tables(rows, "d")


def test_the_cost_is_against_the_better_of_the_two_means():
    # (0.22 - 0.18) / (0.22 - 0.1)
    assert headline([*CLEAN, row("mean-by-part", "none", 0.22)], RULE)["clean_cost"] == pytest.approx(1 / 3)


def test_rejections_are_those_of_the_attack_that_has_most_rejected():
    rejected = [{"honest": share, "honest tail": share / 2} for share in (0.02, 0.06, 0.01)]
    rows = [
        row(RULE, "none", 0.18, rejected=rejected[0]),
        row(RULE, "ipm", 0.18, rejected=rejected[1]),
        row(RULE, "ipm", 0.18, rejected=rejected[2], seed=1),
    ]
    found = headline(rows, RULE)
    assert (found["honest_reject_rate"], found["tail_reject_rate"]) == pytest.approx((0.035, 0.0175))


def test_of_shared_and_personal_lists_those_that_lose_more_count():
    rows = [row(RULE, "none", 0.18), row(RULE, "ipm", 0.17)]
    for each, ndcg, er10 in zip(rows, (0.2, 0.1), (0.0, 0.3), strict=True):
        each["test"]["personal"] = {"NDCG@10": ndcg, "ER@10": er10}
    found = headline(rows, RULE)
    assert found["worst_ndcg_loss_20pct"] == pytest.approx(0.5)
    assert found["worst_er10_rise_20pct"] == pytest.approx(0.3)


def test_the_interval_of_a_loss_is_over_seeds_in_pairs():
    # Seeds lose 0.02, 0.03, 0.04 of a clean mean of 0.2: 15 % on average, and 4.303 * 0.01 / sqrt(3) / 0.2 = 12.4 %.
    clean = [row(RULE, "none", ndcg, seed=seed) for seed, ndcg in enumerate((0.1, 0.2, 0.3))]
    attacked = [row(RULE, "ipm", ndcg, seed=seed) for seed, ndcg in enumerate((0.08, 0.17, 0.26))]
    verdict = verdicts([*clean, *attacked])[1]
    assert (verdict.loss, verdict.half_width) == pytest.approx((0.15, 0.1242), rel=1e-3)
    assert "| d | tail | ipm | 3 | 15.0% ± 12.4% |" in judged([*clean, *attacked], RULE)


def test_the_headline_tells_how_many_attacks_and_seeds_its_worst_is_of():
    rows = [row(RULE, "ipm", 0.1), row(RULE, "ipm", 0.1, seed=1), row(RULE, "ipm", 0.1, options={"epsilon": 0.5})]
    found = headline(CLEAN + rows, RULE)
    assert (found["attacks_judged"], found["least_seeds"]) == (2, 1)


def test_an_attack_on_whole_nodes_is_compared_with_the_clean_run_without_their_users():
    other = row(RULE, "none", 0.1, options={"beside": "malformed"})
    rows = [*CLEAN, other, row(RULE, "malformed", 0.09)]
    assert headline(rows, RULE)["worst_ndcg_loss_20pct"] == pytest.approx(0.1)  # 1 - 0.09 / 0.1, not of 0.18


def test_an_attack_on_whole_nodes_comes_with_its_own_clean_run():
    cells_of = [(cell["attack"], cell["options"]) for cell in planned("malformed", "tail")]
    assert cells_of == [("none", {"beside": "malformed"}), ("malformed", {})]


def test_a_trial_with_an_override_is_no_row_of_the_study():
    [plain], [trial] = (
        list(cells(Namespace(**{**PROTOCOL, "set": given}, attacks="none", targets="tail", rules="mean")))
        for given in ([], ["federation.rounds=3"])
    )
    assert [plain[name] for name in KEY] != [trial[name] for name in KEY]
