"""Plans for noise that devices add, or that is correlated over rounds: what is planned is what a run is charged."""

from __future__ import annotations

import json

import pytest
import toy_task
from hypothesis import given, settings
from hypothesis import strategies as st
from private_toy import federate, private
from typer.testing import CliRunner

from cli.main import app, main
from fedquilt.errors import PrivacyError
from fedquilt.privacy.gaussian import gaussian_epsilon
from fedquilt.privacy.mode_plans import MODES, ModePlan, Setting, curve, epsilon_of, noise_for, rounds_for
from fedquilt.privacy.sampling import FixedOrder, NoSampling
from server.privacy import summary

TURNS = FixedOrder(5)
TOY = toy_task.toy_deployment().spec.num_parameters


def setting(mode: str, sampler=TURNS, **more) -> Setting:
    return Setting(mode, sampler, 1_000, 1e-4, **{"dimension": 100, **more})


@pytest.mark.parametrize("mode", MODES)
def test_planned_noise_keeps_the_target_and_a_little_less_does_not(mode):
    noise = noise_for(setting(mode), 2.0, 12)
    assert epsilon_of(setting(mode), noise, 12) <= 2.0 < epsilon_of(setting(mode), 0.998 * noise, 12)


@pytest.mark.parametrize("mode", MODES)
def test_planned_rounds_fit_and_a_turn_more_does_not(mode):
    rounds = rounds_for(setting(mode), 3.0, 6.0)
    assert epsilon_of(setting(mode), 6.0, rounds) <= 3.0 < epsilon_of(setting(mode), 6.0, rounds + 5)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_of_the_mode_takes_the_planned_noise_and_spends_the_planned_epsilon(mode, tmp_path):
    _, run = federate(tmp_path, private(mode, epsilon=2.0))
    spent = summary(run)
    planned = Setting(mode, FixedOrder(2), 24, spent["delta"], dimension=TOY)
    assert spent["noise_multiplier"] == noise_for(planned, 2.0, 4)
    assert spent["epsilon"] == pytest.approx(epsilon_of(planned, spent["noise_multiplier"], 4))


@given(groups=st.integers(1, 8), rounds=st.integers(1, 30))
@settings(max_examples=25, deadline=None)
def test_local_rounds_in_turns_cost_as_many_gaussians_as_turns(groups, rounds):
    turns = -(-rounds // groups)
    one = gaussian_epsilon(2 * turns**0.5 / 7.0, 1e-4)
    assert epsilon_of(setting("local", FixedOrder(groups)), 7.0, rounds) == pytest.approx(one)


def test_rounding_to_the_grid_costs_noise_over_the_continuous_mechanism():
    discrete = noise_for(setting("distributed", NoSampling()), 2.0, 1)
    continuous = noise_for(setting("dp-ftrl", NoSampling()), 2.0, 1)
    assert discrete > continuous


def test_a_step_of_every_mechanism_has_the_noise_of_its_sum_over_the_cohort():
    local, shared = (ModePlan(setting(mode, NoSampling()), 3.0, 1) for mode in ("local", "distributed"))
    assert local.on_the_mean == pytest.approx(3 / 1_000**0.5)
    assert shared.on_the_mean == pytest.approx(3 / 1_000)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: noise_for(setting("local"), 0.0, 5), "epsilon must be"),
        (lambda: noise_for(setting("local"), 1.0, 0), "at least one round"),
        (lambda: noise_for(setting("gossip"), 1.0, 5), "known: local"),
        (lambda: noise_for(setting("distributed", dimension=0), 1.0, 5), "its dimension"),
        (lambda: rounds_for(setting("local"), 1.0, 0.0), "no budget covers no noise"),
        (lambda: rounds_for(setting("dp-ftrl"), 1.0, 0.1), "take more noise"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(call, told):
    with pytest.raises(PrivacyError, match=told):
        call()


# --- the verb ---


def plan(*arguments):
    return CliRunner().invoke(app, ["privacy", "plan", "--users", "1000", "--cohort-size", "200", *map(str, arguments)])


def test_the_plan_of_a_mode_stands_beside_the_others_with_its_own_row_marked():
    told = plan("--mode", "distributed", "--dimension", 50, "--epsilon", 4, "--rounds", 10, "--json")
    facts = json.loads(told.stdout)
    assert facts["epsilon"] <= 4
    assert [row["mode"] for row in facts["modes"] if row["executed"]] == ["distributed"]
    assert {row["mode"] for row in facts["modes"]} == {*MODES, "central"}


@pytest.mark.parametrize("mode", MODES)
def test_what_is_charged_by_rounds_grows_to_the_plans_own_epsilon(mode):
    made = ModePlan(setting(mode), 6.0, 25)
    rows = curve(made)
    assert rows[-1] == (25, made.epsilon)
    assert [epsilon for _, epsilon in rows] == sorted(epsilon for _, epsilon in rows)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_draws_what_its_rounds_are_charged(mode, tmp_path):
    picture = tmp_path / "plan.png"
    told = plan("--mode", mode, "--dimension", 50, "--noise", 6, "--rounds", 20, "--plot", picture, "--json")
    assert told.exit_code == 0, told.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(told.stdout)["by_rounds"]) == 12


def test_without_a_dimension_the_distributed_row_is_left_out():
    facts = json.loads(plan("--mode", "local", "--epsilon", 4, "--noise", 9, "--json").stdout)
    assert {row["mode"] for row in facts["modes"]} == {"local", "dp-ftrl", "central"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--mode", "gossip", "--epsilon", 3, "--rounds", 5), "known: central"),
        (("--mode", "distributed", "--epsilon", 3, "--rounds", 5), "--dimension"),
        (("--mode", "dp-ftrl", "--epsilon", 3, "--rounds", 5, "--sampler", "poisson"), "fixed-order or none"),
        (("--mode", "dp-ftrl", "--epsilon", 3, "--rounds", 5, "--correlation", "square"), "known: banded"),
        (("--mode", "local", "--epsilon", 3, "--rounds", 5, "--accountant", "pld"), "mode 'central'"),
        (("--mode", "local", "--epsilon", 3), "exactly two"),
        (("--sampler", "fixed-order", "--epsilon", 3, "--rounds", 5), "give --mode"),
    ],
)
def test_the_verb_says_what_is_wrong(arguments, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["privacy", "plan", "--users", "1000", "--cohort-size", "50", *map(str, arguments)])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err
