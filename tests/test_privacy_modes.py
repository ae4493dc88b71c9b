"""Every privacy mechanism in rounds of the toy federation: it runs, it is accounted for, and what is bad is refused."""

from __future__ import annotations

import dataclasses
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import toy_task
from private_toy import MODES, device_ledgers, events, federate, go_on, private, rejected, sendings

import fedquilt.privacy.ledger as ledger_module
from fedquilt.errors import ConfigError, FederationError, LedgerError, PrivacyError
from fedquilt.privacy.events import AdaptiveClip, DeviceRound, GaussianRelease, LocalRound, MatrixOpened, TreeRelease
from fedquilt.privacy.gaussian import gaussian_epsilon
from fedquilt.privacy.settings import PrivacyConfig
from fedquilt.privacy.statement import in_words, statement
from fedquilt.privacy.verify import verify
from server.mechanisms import require_mode
from server.privacy import require_possible, summary


@pytest.fixture(scope="module", params=MODES)
def done(request, tmp_path_factory):
    """(mode, result, run) of a whole run of each mechanism."""
    return request.param, *federate(tmp_path_factory.mktemp(request.param), private(request.param))


# --- every mechanism ---


def test_a_run_verifies_with_the_ledgers_of_its_devices(done):
    _, _, run = done
    verdict = verify(run.path)
    assert verdict.holds, verdict.findings
    assert verdict.num_releases >= 4
    assert len(device_ledgers(run)) == 3
    assert {record["privacy_head"] for record in run.records("round")} == {
        record["privacy_head"] for record in run.records("round") if record["release_digest"]
    }


def test_the_statement_says_how_noise_was_added_and_that_personal_patches_need_none(done):
    mode, _, run = done
    facts = statement(run.path)
    words = " ".join(in_words(facts))
    assert "personal patches: they stay on the device, so they need no noise" in words
    told = {
        "local": "own device",
        "distributed": "sums only",
        "dp-ftrl": "how often",
        "quantile": "followed what people send",
    }
    assert told.get(mode, "added to the sum of all") in words
    assert facts["epsilon"] <= summary(run)["epsilon"]


def test_every_round_is_on_the_devices_own_ledgers_before_its_reply(done):
    _, _, run = done
    for path in device_ledgers(run):
        rounds = [event.round_ for event in events(path) if isinstance(event, DeviceRound)]
        assert sorted(set(rounds)) == [1, 2, 3, 4]  # by norms, a round is an event a group of equal share
        assert verify(path, deltas=(1e-3,)).holds


def test_a_resume_after_the_end_charges_nothing_and_changes_nothing(done):
    _, result, run = done
    before = events(run.path)
    assert go_on(run).patch_P.tobytes() == result.patch_P.tobytes()
    assert [e for e in events(run.path) if e.releases] == [e for e in before if e.releases]


def test_an_older_copy_of_the_ledger_shows_in_the_devices_ledgers(done, tmp_path):
    _, _, run = done
    older = Path(shutil.copy(run.path / "privacy.sqlite", tmp_path / "older.sqlite"))
    seen = [event.run_head for event in events(device_ledgers(run)[0]) if isinstance(event, DeviceRound)][-1]
    with sqlite3.connect(older) as db:
        db.execute("DROP TRIGGER entries_last")
        db.execute("DELETE FROM entries WHERE seq >= ?", (int(seen.partition(":")[0]),))
    db.close()
    alone = verify(older, accountants=("rdp",))
    assert alone.holds  # nobody who remembers nothing can tell
    found = verify(older, devices=device_ledgers(run), accountants=("rdp",)).findings
    assert {finding.kind for finding in found} == {"rollback"}


@pytest.mark.parametrize("mode", ["local", "distributed", "dp-ftrl"])
def test_a_target_is_met_over_the_configured_rounds(mode, tmp_path):
    _, run = federate(tmp_path, private(mode, {"evaluate_every": 0}, epsilon=2.0))
    assert 1.97 < summary(run)["epsilon"] <= 2.0


@pytest.mark.parametrize("mode", ["local", "distributed"])
def test_another_run_with_secrets_has_other_noise(mode, tmp_path):
    one, run = federate(tmp_path, private(mode, {"rounds": 1}, randomness="secret"))
    two, _ = federate(tmp_path, private(mode, {"rounds": 1}, randomness="secret"))
    assert one.patch_P.tobytes() != two.patch_P.tobytes()
    assert all(path.with_suffix(".key").stat().st_mode & 0o077 == 0 for path in device_ledgers(run))


# --- bad input, in every mechanism ---


class Odd(toy_task.ToyTask):
    """User 100 sends NaN, 101 infinity, 102 nothing but zeros, 103 claims a huge number of examples."""

    def train(self, client_ids_K, *arguments):
        local = super().train(client_ids_K, *arguments)
        updates_KP, num_K = local.updates_KP.copy(), np.array(local.num_examples_K)
        for client_id, value in ((100, np.nan), (101, np.inf), (102, 0.0)):
            updates_KP[client_ids_K == client_id] = value
        num_K[client_ids_K == 103] = 2**40
        return dataclasses.replace(local, updates_KP=updates_KP, num_examples_K=num_K)


@pytest.mark.parametrize("mode", MODES)
def test_nan_and_infinite_updates_lose_their_place_and_zeros_and_weights_do_no_harm(mode, tmp_path):
    config = private(mode, {"rounds": 2}, sampler="none" if mode not in ("central", "norms", "quantile") else "poisson",
                     dropout_margin=0.2)  # fmt: skip
    result, run = federate(tmp_path, config, toy_task.factory_of(Odd))
    assert np.isfinite(result.patch_P).all()
    assert verify(run.path).holds
    if config.privacy.sampler == "none":
        assert rejected(run).count('not finite": 1') == 4  # two users on two nodes, two rounds


@pytest.mark.parametrize("mode", MODES)
def test_a_clock_that_goes_backwards_releases_nothing(mode, tmp_path, monkeypatch):
    _, run = federate(tmp_path, private(mode, {"rounds": 1, "evaluate_every": 0}))
    before = [event for event in events(run.path) if event.releases]
    longer = run.path / "config.toml"
    assert longer.exists()
    opened = ledger_module.Ledger.open
    monkeypatch.setattr(ledger_module.Ledger, "open", classmethod(lambda cls, path: opened(path, clock=lambda: 1)))
    with pytest.raises(LedgerError, match="clock went back"):
        go_on(run)
    assert [event for event in events(run.path) if event.releases] == before


@pytest.mark.parametrize("mode", MODES)
def test_a_ledger_that_cannot_be_written_releases_nothing(mode, tmp_path, monkeypatch):
    """As on a full disk: SQLite reports it in the same way."""

    def full(self, event, cohort_K=None):
        raise LedgerError(f"{self.path}: cannot record {event.kind}: database or disk is full. Nothing is released")

    real = ledger_module.Ledger.append
    monkeypatch.setattr(
        ledger_module.Ledger,
        "append",
        lambda self, event, cohort_K=None: (full if event.releases else real)(self, event, cohort_K),
    )
    config = private(mode, {"evaluate_every": 0})
    with pytest.raises((LedgerError, FederationError), match=r"disk is full|shares arrived"):
        federate(tmp_path, config)
    (run,) = tmp_path.iterdir()
    assert not [event for event in events(run) if event.releases]
    assert not (run / "metrics.jsonl").exists() or '"round"' not in (run / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("mode", "federation", "privacy", "words"),
    [
        ("local", {}, {"epsilon": 2.0, "noise_multiplier": 1.0}, "exactly one"),
        ("local", {}, {"noise_multiplier": 0.0, "budget_epsilon": 2.0}, "exactly one"),
        ("local", {"weighting": "num-examples"}, {}, "weighs all alike"),
        ("local", {"clipping_norm": float("inf")}, {}, "finite clipping norm"),
        ("local", {}, {"quantile": 0.5}, "for mode 'central'"),
        ("local", {}, {"device_norms": True}, "for mode 'central'"),
        ("distributed", {}, {"device_norms": True}, "for mode 'central'"),
        ("dp-ftrl", {}, {"device_norms": True}, "for mode 'central'"),
        ("norms", {}, {"quantile": 0.5}, "clipping norm that stays"),
        ("norms", {}, {"sampler": "fixed"}, "cohorts of fixed size"),
        ("distributed", {"aggregator": "median"}, {}, "sees sums only"),
        ("distributed", {}, {"sampler": "poisson"}, "would promise too much"),
        ("dp-ftrl", {}, {"sampler": "fixed"}, "would promise too much"),
        ("dp-ftrl", {"aggregator": "median"}, {}, "no proven sensitivity"),
        ("central", {}, {"sampler": "fixed-order"}, "for modes local"),
        ("central", {}, {"population_epsilon": 2.0}, "go together"),
    ],
)
def test_what_cannot_be_vouched_for_is_refused(mode, federation, privacy, words):
    with pytest.raises(PrivacyError, match=words):
        require_mode(private(mode, federation, **privacy))


def test_limits_without_a_mode_are_refused():
    limit = PrivacyConfig(device_epsilon=3.0)
    with pytest.raises(PrivacyError, match="spends without limit"):
        require_possible(toy_task.toy_config().model_copy(update={"privacy": limit}))


def test_norms_without_a_mode_are_refused():
    with pytest.raises(PrivacyError, match="for mode 'central'"):
        require_possible(toy_task.toy_config().model_copy(update={"privacy": PrivacyConfig(device_norms=True)}))


@pytest.mark.parametrize("mode", MODES)
def test_a_delta_of_one_in_n_and_a_negative_epsilon_are_refused(mode, tmp_path):
    with pytest.raises(PrivacyError, match="delta"):
        federate(tmp_path, private(mode, delta=1 / 24))
    with pytest.raises(ConfigError, match="epsilon"):
        private(mode, epsilon=-1.0)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "quantile"])
def test_the_round_beyond_the_budget_is_refused_before_it_is_sent(mode, tmp_path):
    _, run = federate(tmp_path, private(mode, {"evaluate_every": 0}, budget_epsilon=0.5))
    assert run.records("round") == []
    assert not any(path for path in device_ledgers(run))
    assert "stopped by the privacy budget" in run.records("warning")[-1]["message"]


# --- local ---


def test_local_rounds_charge_the_worst_single_user_and_nobody_else(tmp_path):
    _, run = federate(tmp_path, private("local"))
    charged = [event.participations for event in events(run.path) if isinstance(event, LocalRound)]
    assert charged == [1, 1, 1, 1, 2, 2, 2, 2]  # asked and answered, in two groups that take turns
    opening = events(run.path)[0]
    # exact: two releases of a row that moves by 2C, std C: mu² = 2 · 2²
    assert summary(run)["epsilon"] == pytest.approx(gaussian_epsilon(np.sqrt(8), opening.delta))


def test_local_rows_are_free_for_any_rule_and_tell_nothing_else(tmp_path):
    _, run = federate(tmp_path, private("local", {"aggregator": "median", "rounds": 1}))
    (record,) = run.records("round")
    assert record["metrics"] == {}
    assert record["reclipped"] == 0


def test_a_user_without_examples_sends_noise_alone(tmp_path):
    class Silent(toy_task.ToyTask):
        def train(self, *arguments):
            return dataclasses.replace(super().train(*arguments), num_examples_K=np.zeros(len(arguments[0]), int))

    _, run = federate(tmp_path, private("local", {"rounds": 1}), toy_task.factory_of(Silent))
    (record,) = run.records("round")
    assert record["num_rejected"] == 0
    assert record["update_norm"]["median"] > 0.5  # noise of std 0.5 on ten parameters


# --- the device's own limit ---


def test_a_device_refuses_users_beyond_its_limit_and_the_others_go_on(tmp_path):
    once = gaussian_epsilon(2.0, 1e-6)  # of one row, which moves by 2C under noise of std C
    config = private("local", {"evaluate_every": 0}, sampler="poisson")
    _, run = federate(tmp_path, config, **{"device-epsilon": 1.01 * once})
    assert "own privacy budget is spent" in rejected(run)
    answered = [event for path in device_ledgers(run) for event in sendings(path)]
    assert sum(event.cohort_size for event in answered) == sum(r["replies"] for r in run.records("round")) <= 24


def test_a_device_with_a_limit_sends_nothing_unnoised(tmp_path):
    run = toy_task.RunFolder.create(tmp_path, toy_task.toy_config(rounds=1))
    with pytest.raises(FederationError, match="says nothing of the noise that covers it"):
        go_on(run, **{"device-epsilon": 3.0})


# --- adaptive clipping ---


def test_clipping_follows_the_quantile_and_the_count_is_paid_for(tmp_path):
    federation = {"rounds": 30, "clipping_norm": 5.0, "evaluate_every": 0, "cohort_size": 20, "checkpoint_every": 30}
    _, run = federate(tmp_path, private("quantile", federation))
    norms = [event.clipping_norm for event in events(run.path) if isinstance(event, GaussianRelease)]
    following = [event.next_norm for event in events(run.path) if isinstance(event, AdaptiveClip)]
    assert norms == [5.0, *following[:-1]]
    assert norms[-1] < 2.5  # rows of the toy are about 1 long
    _, fixed = federate(tmp_path, private("central", federation))
    assert summary(run)["epsilon"] == pytest.approx(summary(fixed)["epsilon"])  # together they cost one release


def test_a_node_that_says_nothing_or_nonsense_of_its_norms_moves_the_count_by_its_users_only():
    from strategies.central import WITHIN, within
    from strategies.pipeline import Usable

    none = np.empty(0)
    told = Usable(none, none, none, np.array([0.1, 0.5, 0.5]), {WITHIN: np.array([1.0, np.nan, 7e9])}, none)
    assert within(told, 0.5).tolist() == [True, False, True]
    assert within(dataclasses.replace(told, metrics={}), 0.5).tolist() == [True, False, False]


# --- distributed ---


@pytest.mark.parametrize("noise", ["skellam", "discrete-gaussian"])
def test_the_opened_sum_is_the_mean_of_clipped_rows_plus_noise_of_the_stated_size(noise, tmp_path):
    federation = {"rounds": 1, "evaluate_every": 0}
    mean, quiet, loud = (
        federate(tmp_path, plain(private(mode, federation, noise_multiplier=z, **facts)))[0].patch_P
        for mode, z, facts in (
            ("dp-ftrl", 1e-9, {}),
            ("distributed", 0.01, {"noise": noise}),
            ("distributed", 20.0, {"noise": noise}),
        )
    )
    assert np.abs(quiet - mean).max() < 0.003  # 0.01 · C / 12 users = 0.0004 a standard deviation
    assert 0.3 < np.std(loud - mean) / (20 * 0.5 / 12) < 2  # ten parameters


def plain(config):
    """The patch after one round is the released mean."""
    optimizer = config.server_optimizer.model_copy(update={"name": "sgd", "learning_rate": 1.0, "decay": 0.0})
    return config.model_copy(update={"server_optimizer": optimizer})


def test_below_the_dropout_margin_the_sum_is_not_opened(tmp_path):
    class Gone(toy_task.ToyTask):
        def train(self, client_ids_K, *arguments):
            local = super().train(client_ids_K, *arguments)
            updates_KP = local.updates_KP.copy()
            updates_KP[client_ids_K % 2 == 0] = np.nan
            return dataclasses.replace(local, updates_KP=updates_KP)

    config = private("distributed", {"rounds": 1}, dropout_margin=0.1)
    with pytest.raises(FederationError, match="so the sum is not opened"):
        federate(tmp_path, config, toy_task.factory_of(Gone))
    (folder,) = tmp_path.iterdir()
    assert not [event for event in events(folder) if event.releases]


# --- DP-FTRL ---


@pytest.mark.parametrize(("correlation", "sampler"), [("tree", "none"), ("banded", "fixed-order")])
def test_the_whole_mechanism_is_charged_before_the_first_round(correlation, sampler, tmp_path):
    _, run = federate(tmp_path, private("dp-ftrl", {"rounds": 2}, correlation=correlation, sampler=sampler))
    kinds = [type(event) for event in events(run.path) if isinstance(event, MatrixOpened | TreeRelease)]
    assert kinds == [MatrixOpened, TreeRelease, TreeRelease]
    opened = next(event for event in events(run.path) if isinstance(event, MatrixOpened))
    assert opened.max_participations == (2 if sampler == "none" else 1)
    assert summary(run)["epsilon"] == pytest.approx(gaussian_epsilon(opened.sensitivity, events(run.path)[0].delta))
