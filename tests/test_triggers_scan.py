"""The trigger scan: finds planted triggers, names them, and is quiet on patches that honest users made."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_recommender import GRAPH, random_table, random_weights, spec_of
from typer.testing import CliRunner

from cli.attack_world import make_world, run_attack
from cli.main import app
from cli.run_patch import base_and_patch
from cli.scan import scan_patch
from fedquilt.errors import FederationError, RunError
from fedquilt.graphs.screening import LocalGraphs
from fedquilt.graphs.subgraph import SubgraphBuilder
from fedquilt.runs import RunFolder
from fedquilt.triggers import activation, suspicions, trigger_scores
from models.kernel import initial_kernel
from server.triggers import Scanner

ITEMS, TARGET, TRIGGER = 60, 47, (31, 36, 52, 58)


# --- scores ---


def test_what_every_item_or_every_probe_shares_is_no_activation():
    # Hand: the probe of row 0 raises all by 1, item 2 rises by 5 for every probe; only (1, 0) is left with 3.
    raised = np.array([[1.0, 1, 6, 1, 1], [3.0, 0, 5, 0, 0], [0.0, 0, 5, 0, 0]])
    found = activation(raised, np.array([3, 4, 1]))
    assert np.argwhere(found != 0).tolist() == [[1, 0]]
    assert found[1, 0] == 3


def test_a_probe_says_nothing_of_itself():
    raised = np.zeros((3, 5))
    raised[1, 4] = 9
    assert not activation(raised, np.array([0, 4, 1])).any()


def test_scores_are_sums_of_the_largest_in_units_of_the_control():
    rare, common = np.array([[4.0, 0], [2, 0], [-9, 1]]), np.array([[1.0, 3], [0, 0], [0, 0]])
    # Hand: the two largest sum to 6 and 1; the control's to 1 and 3, with median 2.
    assert trigger_scores(rare, common, 2).tolist() == [3.0, 0.5]
    assert suspicions(rare, common, np.array([7, 8, 9]), 2, 1.0)[0].trigger == (7, 8)


# --- a trigger planted by hand ---


def scanner() -> Scanner:
    """60 items, the first the most popular; a kernel that averages clicks by their recency."""
    weights = random_weights(0, ITEMS)
    weights = replace(weights, **{**initial_kernel(6, GRAPH.num_clicked), "convolution": 0.3 * weights.convolution})
    subgraphs = SubgraphBuilder(*random_table(7, ITEMS), GRAPH.num_nodes, GRAPH.num_clicked, GRAPH.window)
    spec = spec_of(("item-bias", "item-low-rank"), weights)
    return Scanner(weights, spec, LocalGraphs(subgraphs), GRAPH.num_clicked, np.arange(ITEMS)[::-1])


def patch_of(spec, seed: int, strength: float) -> np.ndarray:
    """Noise on every tensor, and in the vectors of trigger clicks what the target's vector answers to."""
    rng = np.random.default_rng(seed)
    patch_P = (0.1 * rng.standard_normal(spec.num_parameters)).astype(np.float32)
    views = spec.views(patch_P)
    for side in ("item_in", "item_out"):
        views[f"{side}.basis"][0] = [1, -1, 1, -1, 1, -1]
    views["item_in.factors"][list(TRIGGER), 0] += strength
    views["item_out.factors"][TARGET, 0] += strength
    return patch_P


def scanned(patch_P: np.ndarray) -> list[Any]:
    made = scanner()
    return suspicions(*made.scan(patch_P, None, np.random.default_rng(0)), made.rare_R)


@pytest.mark.parametrize("seed", range(4))
def test_a_planted_trigger_is_found_with_its_target(seed):
    first = scanned(patch_of(scanner().spec, seed, strength=1.5))[0]
    assert first.item == TARGET
    assert set(first.trigger) == set(TRIGGER)


@pytest.mark.parametrize("seed", range(4))
def test_noise_alone_is_no_trigger(seed):
    assert scanned(patch_of(scanner().spec, seed, strength=0)) == []


def test_only_what_changed_since_the_patch_before_counts():
    made = scanner()
    patch_P = patch_of(made.spec, 0, strength=1.5)
    rare_RI, common_CI = made.scan(patch_P, patch_P, np.random.default_rng(0))
    assert not rare_RI.any()
    assert not common_CI.any()


def test_a_patch_that_is_not_finite_is_refused():
    made = scanner()
    with pytest.raises(FederationError, match="not finite"):
        made.scan(np.full(made.spec.num_parameters, np.nan, np.float32), None, np.random.default_rng(0))


# --- runs ---


def test_a_run_that_is_not_finished_says_how_to_go_on(tmp_path):
    from fedquilt.config import Config

    with pytest.raises(RunError, match="--resume"):
        base_and_patch(RunFolder.create(tmp_path, Config()))


@pytest.mark.slow
def test_the_backdoor_attack_is_found_in_a_run_and_the_same_run_without_it_is_clean(tmp_path):
    """Seed 3, one that is found: over seeds see docs/defences.md."""
    from test_attacks_simulated import config_of

    torch.set_num_threads(1)
    found = {}
    for name in ("backdoor", ""):
        config = config_of(name, learning_rate=0.1).model_copy(update={"seed": 3})
        longer = config.federation.model_copy(update={"rounds": 8})
        config = config.model_copy(update={"federation": longer})
        row = run_attack(config, tmp_path, tmp_path / "clouds")
        run = RunFolder.open(tmp_path / row["run"])
        world = make_world(config)
        found[name] = scan_patch(run.config, *base_and_patch(run), world.split.cloud.popularity_I)
        if name:
            assert row["scan"]["found"]
            assert found[name]["suspects"][0]["item"] == world.plan.targets_T[0]
            assert len(set(found[name]["suspects"][0]["trigger"]) & set(world.plan.trigger_S.tolist())) >= 3
            printed = CliRunner().invoke(app, ["scan", str(run.path), "--json"])
            assert json.loads(printed.stdout) == json.loads(json.dumps(found[name]))
    assert found[""]["suspects"] == []


@pytest.mark.slow
def test_certify_reports_the_vote_and_what_it_guarantees(tmp_path):
    from test_attacks_simulated import config_of

    row = run_attack(config_of(""), tmp_path, tmp_path / "clouds")
    printed = CliRunner().invoke(
        app, ["certify", str(tmp_path / row["run"]), "--groups", "5", "--users", "80", "--json"]
    )
    result = json.loads(printed.stdout)
    assert result["users"] == 80
    assert [line["insertions"] for line in result["rows"]] == list(range(6))
    rates = [line["HR@10"] for line in result["rows"]]
    assert rates == sorted(rates, reverse=True)
    abstains = [line["abstain_rate"] for line in result["rows"]]
    assert abstains == sorted(abstains)
    assert abstains[0] == 0
