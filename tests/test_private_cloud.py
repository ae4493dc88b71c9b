"""DP-SGD in the cloud: whole users are the unit, their gradients are bounded, and every step is on a ledger."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from tiny_recommender import tiny_run

from client.app import app as client_app
from fedquilt.config import Config, parse
from fedquilt.errors import BudgetExceededError, DataError, PrivacyError
from fedquilt.graphs.coclick import build_coclick, read_graph
from fedquilt.graphs.datasets import load_split
from fedquilt.privacy.book import read_book
from fedquilt.privacy.events import Deviation, GaussianRelease
from fedquilt.privacy.probe import probe, require_bounded
from fedquilt.privacy.verify import verify
from fedquilt.runs import RunFolder
from models.losses import Examples, softmax_loss
from server import cloud, private_cloud
from server.private_cloud import CLOUD_LEDGER, PrivateTrainer, _user_gradients
from server.simulate import simulate


def private(**section: object) -> Config:
    given = {"noise_multiplier": 1.0, **section}
    config = tiny_run(cloud={"epochs": 2, "batch_size": 16})
    return parse({**config.model_dump(), "cloud_privacy": given})


CONFIG = private()


def trainer_of(config: Config, folder) -> PrivateTrainer:
    split = load_split(config.data, config.split)
    neighbours, _ = cloud._neighbours(config, split.cloud)
    model = cloud._model(config, split.cloud, neighbours)
    return PrivateTrainer(config, model, cloud._builder(config, split.cloud, neighbours), folder)


def train(config: Config, folder):
    return cloud.train_cloud(config, load_split(config.data, config.split), folder=folder)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return trainer_of(CONFIG, tmp_path_factory.mktemp("trainer"))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(what was trained, its folder)."""
    folder = tmp_path_factory.mktemp("done")
    return train(CONFIG, folder), folder


def events(folder):
    return read_book(folder / CLOUD_LEDGER)[0].events


@pytest.fixture(scope="module")
def users(trainer):
    """Eight who have clicks in the cloud."""
    return trainer.users_U[:8]


# --- gradients of users ---


def test_gradients_of_users_add_up_to_the_gradient_of_their_summed_loss(trainer, users):
    cohort = trainer._cohort(users, 1)
    each = _user_gradients(trainer.loss, trainer.parameters, cohort)
    weights = trainer.model.weights()
    softmax_loss(weights, Examples.of(cohort, weights.num_items)).sum().backward()
    for name, parameter in trainer.parameters.items():
        assert each[name].sum(0).numpy() == pytest.approx(parameter.grad.numpy(), abs=1e-4)
    trainer.optimizer.original_optimizer.zero_grad()


def test_a_users_gradient_does_not_depend_on_who_else_is_in_the_batch(trainer, users):
    alone = _user_gradients(trainer.loss, trainer.parameters, trainer._cohort(users[3:4], 1))
    among = _user_gradients(trainer.loss, trainer.parameters, trainer._cohort(users, 1))
    assert all(torch.allclose(alone[name][0], among[name][3], atol=1e-6) for name in alone)


def clipped_sum_of(trainer, users, monkeypatch):
    """``ReleasedSum``: the trainer's own sum, of gradients [K, P] that are given in place of the users' own."""
    sizes = [parameter.numel() for parameter in trainer.parameters.values()]
    waiting = []

    def given_(loss, parameters, cohort):
        rows = torch.from_numpy(waiting[0][: len(cohort)])
        waiting[0] = waiting[0][len(cohort) :]
        parts = zip(parameters.items(), rows.split(sizes, dim=1), strict=True)
        return {name: part.reshape(-1, *parameter.shape).clone() for (name, parameter), part in parts}

    def released_sum(rows_KP, claims_K):
        waiting[:] = [np.asarray(rows_KP, np.float32)]
        return trainer.clipped_sum(users[: len(rows_KP)], 1)

    monkeypatch.setattr(private_cloud, "_user_gradients", given_)
    monkeypatch.setattr(private_cloud, "_AT_ONCE", 3)
    monkeypatch.setattr(trainer, "_cohort", lambda users_K, step: users_K)
    return released_sum


@pytest.fixture
def released_sum(trainer, users, monkeypatch):
    return clipped_sum_of(trainer, users, monkeypatch)


@pytest.fixture(scope="module")
def rows(trainer, users):
    """float32 [8, P]: the users' own gradients."""
    each = _user_gradients(trainer.loss, trainer.parameters, trainer._cohort(users, 1))
    return torch.cat([each[name].flatten(1) for name in trainer.parameters], dim=1).detach().numpy()


@pytest.mark.parametrize("scale", [1e-30, 1.0, 100.0, 1e6])
def test_no_users_gradient_moves_the_clipped_sum_by_more_than_the_clipping_norm(rows, scale, released_sum):
    assert probe(released_sum, CONFIG.cloud_privacy.clipping_norm, rows * np.float32(scale)).bounded


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, 1e30, 0.0])
@pytest.mark.parametrize("places", [slice(None), slice(0, 1), slice(-1, None)])
def test_no_hard_gradient_moves_it_further(rows, value, places, released_sum):
    hard = rows.copy()
    hard[3, places] = value
    assert probe(released_sum, CONFIG.cloud_privacy.clipping_norm, hard, adversarial=False).bounded


def test_the_probe_finds_a_clip_to_twice_the_norm(trainer, rows, released_sum, monkeypatch):
    monkeypatch.setattr(trainer.optimizer, "max_grad_norm", 2 * CONFIG.cloud_privacy.clipping_norm)
    with pytest.raises(PrivacyError, match="2 times the clipping norm"):
        require_bounded(released_sum, CONFIG.cloud_privacy.clipping_norm, rows)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_counts_as_if_its_user_were_not_there(value, rows, released_sum):
    hard = rows.copy()
    hard[3, 5] = value
    without = released_sum(np.delete(rows, 3, axis=0), np.ones(7))
    assert released_sum(hard, np.ones(8)) == pytest.approx(without, abs=1e-6)


def test_gradients_that_are_not_finite_end_no_training(tmp_path, monkeypatch):
    def broken(*arguments):
        gradients = _user_gradients(*arguments)
        next(iter(gradients.values()))[0] = torch.nan  # of the first user of every batch
        return gradients

    monkeypatch.setattr(private_cloud, "_user_gradients", broken)
    trainer = trainer_of(CONFIG, tmp_path)
    assert [record["epoch"] for record in trainer.run()] == [1, 2]
    assert np.isfinite(trainer.weights().item_bias.detach().numpy()).all()
    assert verify(tmp_path / CLOUD_LEDGER).num_releases == trainer.steps


def test_a_model_that_noise_made_infinite_ends_training_by_name(tmp_path):
    trainer = trainer_of(CONFIG, tmp_path)
    with torch.no_grad():
        next(iter(trainer.parameters.values())).fill_(torch.inf)
    with pytest.raises(PrivacyError, match=r"not finite: lower cloud\.learning_rate"):
        list(trainer.run())


def test_gradients_longer_than_the_clipping_norm_are_cut_to_it(users, tmp_path):
    tight = trainer_of(private(clipping_norm=1e-3), tmp_path)
    assert np.linalg.norm(tight.clipped_sum(users[:1], 1)) == pytest.approx(1e-3, rel=1e-4)


def test_a_batch_of_nobody_is_a_sum_of_zeros(trainer, users):
    assert not trainer.clipped_sum(users[:0], 1).any()


# --- the ledger ---


def test_every_step_is_an_event_and_the_ledger_verifies(done):
    _, folder = done
    steps = [event for event in events(folder) if isinstance(event, GaussianRelease)]
    verdict = verify(folder / CLOUD_LEDGER)
    assert verdict.holds, verdict.findings
    assert len(steps) == trainer_of(CONFIG, folder).steps


def test_opacus_and_dp_accounting_agree_on_what_was_spent(done):
    from opacus.accountants import RDPAccountant

    _, folder = done
    steps = [event for event in events(folder) if isinstance(event, GaussianRelease)]
    theirs = RDPAccountant()
    theirs.history = [(1.0, steps[0].sampler.rate, len(steps))]
    delta = events(folder)[0].delta
    ours = verify(folder / CLOUD_LEDGER, accountants=("rdp",)).epsilons["rdp"][delta]
    assert theirs.get_epsilon(delta) == pytest.approx(ours, rel=0.02)


def test_training_again_from_the_start_makes_the_same_model_and_charges_nothing(done, tmp_path):
    result, folder = done
    shutil.copy(folder / CLOUD_LEDGER, tmp_path / CLOUD_LEDGER)
    before = len(events(folder))
    again = train(CONFIG, tmp_path)
    assert again.base["item_vectors"].tobytes() == result.base["item_vectors"].tobytes()
    spent, spent_again = (verify(path / CLOUD_LEDGER, accountants=("rdp",)).epsilons for path in (folder, tmp_path))
    assert spent == spent_again
    assert len(events(folder)) == before


def test_a_target_epsilon_is_met_and_not_exceeded(tmp_path):
    history = train(private(noise_multiplier=0.0, epsilon=4.0), tmp_path).history
    assert 3.5 < history[-1]["epsilon"] <= 4.0
    assert "loss" not in history[-1]


def test_more_noise_moves_the_model_elsewhere(done, tmp_path):
    louder = train(private(noise_multiplier=4.0), tmp_path)
    assert not np.array_equal(louder.base["item_vectors"], done[0].base["item_vectors"])


def shared(config: Config, folder, **privacy: object) -> Config:
    given = {"mode": "central", "noise_multiplier": 1.0, "population": str(folder), "population_epsilon": 1000.0}
    return parse({**config.model_dump(), "privacy": {**given, **privacy}})


def test_the_cloud_spends_from_the_budget_of_its_population(tmp_path):
    config = shared(CONFIG, tmp_path / "together", delta=1e-4)
    train(config, tmp_path)
    charged = [event for event in read_book(tmp_path / "together" / "privacy.sqlite")[0].events if event.releases]
    assert charged == [event for event in events(tmp_path) if event.releases]
    train(config, tmp_path)  # again, with the same bytes
    assert verify(tmp_path / "together", devices=[tmp_path / CLOUD_LEDGER]).holds


def test_a_cloud_stops_where_its_population_has_no_room(tmp_path):
    with pytest.raises(BudgetExceededError, match="the population's budget"):
        train(shared(CONFIG, tmp_path / "together", delta=1e-4, population_epsilon=1.0), tmp_path)


def test_a_shared_budget_takes_a_delta_for_all(tmp_path):
    with pytest.raises(PrivacyError, match=r"set privacy\.delta"):
        train(shared(CONFIG, tmp_path / "together"), tmp_path)


def test_a_ledger_of_another_configuration_is_refused(done, tmp_path):
    shutil.copy(done[1] / CLOUD_LEDGER, tmp_path / CLOUD_LEDGER)
    with pytest.raises(PrivacyError, match="another key, data or configuration"):
        train(private(clipping_norm=0.5), tmp_path)


@pytest.mark.parametrize(
    ("section", "told"),
    [({"epsilon": 2.0}, "give one"), ({"noise_multiplier": 0.0, "epsilon": 2.0, "delta": 0.5}, "publish a user whole")],
)
def test_settings_that_contradict_each_other_are_refused(section, told, tmp_path):
    with pytest.raises(PrivacyError, match=told):
        train(private(**section), tmp_path)


def test_without_a_folder_for_the_ledger_nothing_is_trained():
    with pytest.raises(PrivacyError, match="for its ledger"):
        train(CONFIG, None)


def test_a_section_that_is_off_leaves_the_configurations_hash_alone():
    assert "cloud_privacy" in Config.model_fields
    assert parse(tiny_run().model_dump()).hash() == tiny_run().hash() != CONFIG.hash()


def test_a_simulation_tells_what_its_cloud_spent(tmp_path):
    run = RunFolder.create(tmp_path, CONFIG)
    results = simulate(CONFIG, run, client_app)
    assert results["cloud_privacy"]["epsilon"] == pytest.approx(run.records("cloud")[-1]["epsilon"])
    assert "privacy" not in results


# --- a private graph in place of the clicks' own ---


@pytest.fixture(scope="module")
def graph_file(tmp_path_factory):
    split = load_split(CONFIG.data, CONFIG.split)
    graph = build_coclick(split.cloud, CONFIG.graph.window, CONFIG.graph.top_neighbours)
    path = tmp_path_factory.mktemp("graph") / "private_graph.npz"
    np.savez(path, indptr=graph.indptr, indices=graph.indices, weights=graph.weights)
    return path


def test_a_graph_from_a_file_is_the_graph_that_was_written(graph_file):
    split = load_split(CONFIG.data, CONFIG.split)
    own = build_coclick(split.cloud, CONFIG.graph.window, CONFIG.graph.top_neighbours)
    read = read_graph(graph_file, split.cloud.num_items)
    assert all(np.array_equal(getattr(own, name), getattr(read, name)) for name in ("indptr", "indices", "weights"))


def test_a_cloud_on_a_given_graph_has_its_neighbours_and_says_nothing_of_an_open_one(graph_file, tmp_path, done):
    result = train(private(graph=str(graph_file)), tmp_path)
    assert np.array_equal(result.base["neighbour_items"], done[0].base["neighbour_items"])
    assert any(isinstance(event, Deviation) for event in events(done[1]))
    assert not any(isinstance(event, Deviation) for event in events(tmp_path))


def test_a_graph_alone_leaves_training_without_noise(graph_file):
    config = private(noise_multiplier=0.0, graph=str(graph_file))
    assert not config.cloud_privacy.on
    assert train(config, None).history


@pytest.mark.parametrize("damage", ["missing", "other catalogue", "no graph"])
def test_a_file_that_is_no_graph_of_this_catalogue_is_refused(damage, graph_file, tmp_path):
    path = tmp_path / "graph.npz"
    if damage == "other catalogue":
        np.savez(path, indptr=np.zeros(4, np.int64), indices=np.zeros(0, np.int32), weights=np.zeros(0, np.float32))
    if damage == "no graph":
        path.write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match=r"graph"):
        read_graph(path, load_split(CONFIG.data, CONFIG.split).cloud.num_items)
