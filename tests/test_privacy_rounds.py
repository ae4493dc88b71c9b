"""Central privacy in rounds of the toy federation: who is asked, what is noised, what is recorded, what is refused."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import toy_task
from typer.testing import CliRunner

from cli.main import app
from client.app import make_client_app
from fedquilt.config import Config, parse
from fedquilt.errors import LedgerError, PrivacyError
from fedquilt.privacy.book import read_book
from fedquilt.privacy.events import AbortedRound, BudgetRaised, GaussianRelease
from fedquilt.privacy.keys import shown_cohorts
from fedquilt.privacy.randomness import Simulated
from fedquilt.privacy.statement import statement
from fedquilt.privacy.verify import verify
from fedquilt.runs import RunFolder
from server.checkpoint import load_latest
from server.in_process import InProcessGrid
from server.loop import run_federation
from server.privacy import KEY, raise_budget, require_deployable, summary
from strategies.patch_strategy import PatchStrategy


def private(federation: dict | None = None, **privacy: object) -> Config:
    """24 users on 3 nodes, 4 rounds, 10 users a round expected, noise multiplier 1."""
    given = {"mode": "central"} if "epsilon" in privacy else {"mode": "central", "noise_multiplier": 1.0}
    return parse({**toy_task.toy_config(**(federation or {})).model_dump(), "privacy": {**given, **privacy}})


def go_on(run: RunFolder, factory=toy_task.toy_task):
    grid = InProcessGrid(make_client_app(factory), run.config.federation.num_supernodes)
    return run_federation(grid, run.config, toy_task.toy_deployment(), run, toy_task.MEANS)


def federate(folder, config: Config, factory=toy_task.toy_task):
    run = RunFolder.create(folder, config)
    return go_on(run, factory), run


def releases(run: RunFolder) -> list[GaussianRelease]:
    return [event for event in events(run) if isinstance(event, GaussianRelease)]


def events(run: RunFolder) -> list:
    return read_book(run.path / "privacy.sqlite")[0].events


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return federate(tmp_path_factory.mktemp("done"), private())


# --- rounds ---


def test_the_ledger_of_a_run_holds_and_its_key_draws_the_same_cohorts(done):
    verdict = verify(done[1].path, sampling_source=Simulated(done[1].config.seed))
    assert verdict.holds, verdict.findings
    assert verdict.num_releases == 4


def test_every_round_is_recorded_with_what_left_and_where_the_ledger_stood(done):
    records = done[1].records("round")
    assert [record["release_digest"] for record in records] == [event.release_digest for event in releases(done[1])]
    newest, _ = load_latest(done[1].checkpoints)
    assert newest.privacy_head == records[-1]["privacy_head"] == verify(done[1].path).head


def test_users_losses_and_norms_are_not_recorded(done):
    assert all(record["metrics"] == {} and record["update_norm"] == {} for record in done[1].records("round"))


def test_equal_simulations_end_with_equal_patches(done, tmp_path):
    assert federate(tmp_path, private())[0].patch_P.tobytes() == done[0].patch_P.tobytes()


def test_the_cohort_does_not_depend_on_the_number_of_supernodes(done, tmp_path):
    _, run = federate(tmp_path, private({"num_supernodes": 2}))
    assert [event.cohort_hash for event in releases(run)] == [event.cohort_hash for event in releases(done[1])]


def test_an_empty_round_costs_and_releases_noise(tmp_path):
    _, run = federate(tmp_path, private({"cohort_size": 1, "rounds": 6}))
    (first, *_) = (event for event in releases(run) if event.empty)
    assert len(releases(run)) == 6
    assert run.records("round")[first.round_ - 1]["replies"] == 0
    assert verify(run.path).holds


def test_a_round_in_which_nobody_answers_releases_noise_too(tmp_path):
    class Silent(toy_task.ToyTask):
        def train(self, *arguments):
            return dataclasses.replace(super().train(*arguments), num_examples_K=np.zeros(len(arguments[0]), int))

    _, run = federate(tmp_path, private({"rounds": 1}), toy_task.factory_of(Silent))
    assert run.records("round")[0]["replies"] == 0
    assert len(releases(run)) == 1


def test_without_privacy_there_is_neither_a_ledger_nor_a_new_field(tmp_path):
    _, run = toy_task.federate(tmp_path, rounds=1)
    assert not (run.path / "privacy.sqlite").exists()
    assert "release_digest" not in run.records("round")[0]
    assert "privacy" not in toy_task.toy_config().model_dump_json(exclude={"privacy", "cloud_privacy"})
    assert summary(run) is None


# --- noise and randomness ---


@pytest.mark.slow
def test_a_target_is_met_over_the_configured_rounds(tmp_path):
    _, run = federate(tmp_path, private(epsilon=2.0))
    assert 1.98 < summary(run)["epsilon"] <= 2.0
    assert summary(run)["budget_epsilon"] == 2.0


def test_a_secret_run_verifies_with_its_key_and_differs_from_the_next(tmp_path):
    first, run = federate(tmp_path, private(randomness="secret"))
    second, _ = federate(tmp_path, private(randomness="secret"))
    shown = run.path / "privacy.cohorts.key"
    assert verify(run.path, sampling_source=shown_cohorts(shown), deployed=True).holds
    assert shown.stat().st_mode & 0o077 == 0
    asked = ["privacy", "verify", str(run.path), "--deployed", "--sampling-key"]
    assert CliRunner().invoke(app, [*asked, str(shown)]).exit_code == 0
    assert "not the one the run committed itself to" in CliRunner().invoke(app, [*asked, str(run.path / KEY)]).output
    assert first.patch_P.tobytes() != second.patch_P.tobytes()
    assert (run.path / KEY).stat().st_mode & 0o077 == 0


def test_a_secret_run_without_its_key_does_not_go_on(tmp_path):
    _, run = federate(tmp_path, private(randomness="secret"))
    (run.path / KEY).unlink()
    with pytest.raises(PrivacyError, match="bring back the key"):
        go_on(run)


def test_seeded_noise_is_refused_where_devices_are_real():
    with pytest.raises(PrivacyError, match="every device is told"):
        require_deployable(private(), object())
    require_deployable(private(randomness="secret"), object())


# --- what is refused ---


@pytest.mark.parametrize(
    ("federation", "privacy", "words"),
    [
        ({"aggregator": "median"}, {}, "no proven sensitivity"),
        ({"aggregator": "norm-bounding"}, {}, "there is no proof"),
        ({"pre_rules": ("bucketing",)}, {}, "pre-rule 'bucketing'"),
        ({"pre_rules": ("supernode-cap",)}, {}, "pre-rule 'supernode-cap'"),
        ({"weighting": "num-examples"}, {}, "weighs all alike"),
        ({"clipping_norm": float("inf")}, {}, "finite clipping norm"),
        ({}, {"epsilon": 2.0, "noise_multiplier": 1.0}, "exactly one"),
        ({}, {"noise_multiplier": 0.0}, "exactly one"),
        ({}, {"delta": 0.5}, "delta"),
    ],
)
def test_what_cannot_be_vouched_for_is_refused_before_anything_is_sent(tmp_path, federation, privacy, words):
    with pytest.raises(PrivacyError, match=words):
        federate(tmp_path, private(federation, **privacy))


def test_a_strategy_that_nobody_gave_a_ledger_draws_no_cohort():
    strategy = PatchStrategy(private(), toy_task.SPEC, toy_task.BASE)
    with pytest.raises(PrivacyError, match="nobody opened one"):
        strategy._draw(1, None)


# --- the budget ---


def test_the_round_beyond_the_budget_is_refused_before_it_is_sent_and_the_run_ends(tmp_path):
    result, run = federate(tmp_path, private(budget_epsilon=2.2))
    assert result.rounds == len(releases(run)) == len(run.records("round")) < 4
    assert summary(run)["epsilon"] <= 2.2
    assert "stopped by the privacy budget" in run.records("warning")[-1]["message"]
    assert run.records("evaluation")[-1]["round"] == result.rounds


def test_the_round_that_the_budget_ends_is_on_the_ledger_once_and_in_the_statement(tmp_path):
    stopped, run = federate(tmp_path, private(budget_epsilon=2.2))
    go_on(run)
    aborted = [event for event in events(run) if isinstance(event, AbortedRound)]
    assert [(event.round_, event.cause) for event in aborted] == [(stopped.rounds + 1, "budget")]
    assert statement(run.path)["aborted_rounds"] == 1
    assert verify(run.path).holds


def test_a_stopped_run_goes_on_with_a_larger_budget_only_when_someone_says_so(tmp_path, done):
    stopped, run = federate(tmp_path, private({"checkpoint_every": 3}, budget_epsilon=2.2))
    assert go_on(run).rounds == stopped.rounds
    raise_budget(run, 9.0)
    assert go_on(run).rounds == 4
    assert any(isinstance(event, BudgetRaised) for event in events(run))
    assert verify(run.path).holds
    assert summary(run)["epsilon"] == pytest.approx(summary(done[1])["epsilon"])


def test_a_budget_is_not_lowered_and_none_is_raised_where_there_is_none(tmp_path, done):
    _, run = federate(tmp_path, private({"rounds": 1}, budget_epsilon=3.0))
    with pytest.raises(PrivacyError, match="does not raise"):
        raise_budget(run, 2.0)
    with pytest.raises(PrivacyError, match="has no budget"):
        raise_budget(done[1], 2.0)


# --- resume ---


@pytest.fixture
def finished(tmp_path) -> RunFolder:
    return federate(tmp_path, private({"rounds": 2}))[1]


def test_a_resume_without_the_ledger_is_refused(finished):
    (finished.path / "privacy.sqlite").unlink()
    with pytest.raises(LedgerError, match="missing"):
        go_on(finished)


def test_a_resume_with_an_older_copy_of_the_ledger_is_refused(finished, tmp_path):
    older = copy.copy((finished.path / "privacy.sqlite").read_bytes())
    longer = RunFolder.create(tmp_path, finished.config)
    for name in ("metrics.jsonl", "randomness.jsonl"):
        (longer.path / name).write_bytes((finished.path / name).read_bytes())
    for path in finished.checkpoints.iterdir():
        (longer.checkpoints / path.name).write_bytes(path.read_bytes())
    (longer.path / "privacy.sqlite").write_bytes(older)
    go_on(longer)  # the whole ledger: allowed
    _, other = federate(tmp_path, private({"rounds": 2}))
    (longer.path / "privacy.sqlite").write_bytes((other.path / "privacy.sqlite").read_bytes())
    with pytest.raises(LedgerError, match="does not contain"):
        go_on(longer)
