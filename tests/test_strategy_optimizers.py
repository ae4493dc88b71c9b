"""Server optimizers against hand-computed steps and their papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedquilt.errors import ConfigError, UnknownNameError
from strategies.rules import OPTIMIZERS, make_aggregator, make_optimizer

U1, U2 = np.array([0.5, -0.25], np.float32), np.array([-1.0, 0.5], np.float32)


def steps(name, updates, learning_rate=0.1, **options):
    optimizer = make_optimizer(name, learning_rate, options)
    state, deltas = optimizer.initial_state(len(updates[0])), []
    for update_P in updates:
        state, delta_P = optimizer.step(state, update_P)
        deltas.append(delta_P)
    return deltas


def test_sgd_steps_by_the_learning_rate():
    assert steps("sgd", [U1])[0] == pytest.approx([0.05, -0.025])


def test_momentum_adds_what_is_left_of_earlier_updates():
    # m1 = u1; m2 = .9 u1 + u2 = (-.55, .275)
    assert steps("momentum", [U1, U2], beta=0.9)[1] == pytest.approx([-0.055, 0.0275])


def test_adam_is_algorithm_2_of_reddi_et_al():
    # m1 = .1 u = (.05, -.025); v1 = .99·.01² + .01 u² = (.002599, .000724); η m / (√v + τ)
    (first,) = steps("adam", [U1], tau=0.01, bias_correction=False)
    assert first == pytest.approx([0.1 * 0.05 / (0.002599**0.5 + 0.01), -0.1 * 0.025 / (0.000724**0.5 + 0.01)])


def test_adam_with_bias_correction_is_torchs_adam():
    # torch's eps is our tau; its parameter moves against the gradient, ours along the update
    parameter = torch.nn.Parameter(torch.zeros(2))
    reference = torch.optim.Adam([parameter], lr=0.1, betas=(0.9, 0.99), eps=1e-3)
    ours = np.zeros(2)
    for update_P, delta_P in zip([U1, U2, U1], steps("adam", [U1, U2, U1], tau=1e-3), strict=True):
        parameter.grad = torch.from_numpy(-update_P)
        reference.step()
        ours += delta_P
    assert ours == pytest.approx(parameter.detach().numpy(), rel=1e-5)


def test_yogi_is_algorithm_2_of_reddi_et_al():
    # v0 = τ² = .0001 < u² = .25, so the sign is -1 and v1 = .0001 + .01 · .25
    (first,) = steps("yogi", [U1], tau=0.01)
    assert first[0] == pytest.approx(0.1 * 0.05 / ((0.0001 + 0.0025) ** 0.5 + 0.01))


def test_yogi_shrinks_its_second_moment_additively_when_updates_get_smaller():
    # v1 = .0026 as above; u2² = .0001 < v1, so v2 = .0026 - .01 · .0001; m2 = .9 · .05 + .1 · .01
    _, second = steps("yogi", [U1, np.array([0.01, 0.0], np.float32)], tau=0.01)
    assert second[0] == pytest.approx(0.1 * 0.046 / ((0.0026 - 0.000001) ** 0.5 + 0.01), rel=1e-5)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_step_is_pure_and_in_float32(name):
    optimizer = make_optimizer(name, 0.1, {})
    state = optimizer.initial_state(2)
    before = {key: value.copy() for key, value in state.items()}
    next_state, delta_P = optimizer.step(state, U1)
    assert delta_P.dtype == np.float32
    assert delta_P.tobytes() == optimizer.step(state, U1)[1].tobytes()
    assert all((state[key] == before[key]).all() for key in before)
    assert {key: value.dtype for key, value in next_state.items()} == {key: v.dtype for key, v in state.items()}


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_zero_updates_never_move_the_patch(name):
    assert not np.array(steps(name, [np.zeros(2, np.float32)] * 3)).any()


def test_the_means_sensitivity_is_reached_by_a_user_who_turns_around():
    rule, c, k = make_aggregator("mean", {}), 0.5, 4
    updates_KP = torch.zeros(k, 2)
    updates_KP[0, 0] = c
    turned_KP = updates_KP.clone()
    turned_KP[0, 0] = -c
    weights_K = torch.full((k,), 1 / k)
    moved = (rule(updates_KP, weights_K, {}) - rule(turned_KP, weights_K, {})).norm().item()
    assert moved == pytest.approx(rule.sensitivity * c / k)


def test_an_unknown_rule_names_its_nearest_neighbour():
    with pytest.raises(UnknownNameError, match="weighted-mean"):
        make_aggregator("weigthed-mean", {})


def test_a_rule_of_ones_own_is_named_by_its_path():
    assert make_aggregator("strategies.aggregators.mean:Mean", {}).breakdown == 0


@pytest.mark.parametrize("options", [{"betta": 1}, {"beta1": 1.0}, {"tau": 0}])
def test_wrong_options_are_a_configuration_error_that_names_where(options):
    with pytest.raises(ConfigError, match=r"server_optimizer\.options"):
        make_optimizer("adam", 0.1, options)
