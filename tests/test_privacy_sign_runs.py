"""A run that is given a key signs its ledger at checkpoints and at the end, so up to its last entry."""

from __future__ import annotations

import pytest
import toy_task
from private_toy import federate, go_on, private

from fedquilt.config import parse
from fedquilt.errors import PrivacyError
from fedquilt.privacy.book import ledger_path, read_book
from fedquilt.privacy.signing import new_key
from fedquilt.privacy.verify import verify
from fedquilt.runs import RunFolder
from server.privacy import raise_budget


@pytest.fixture
def key(tmp_path):
    """(path as configured, public key)"""
    return str(tmp_path / "key"), new_key(tmp_path / "key")


def signed_entries(run: RunFolder) -> list[int]:
    return [head.seq for head, _, _ in read_book(ledger_path(run.path))[0].heads]


@pytest.mark.parametrize("mode", ["central", "local", "distributed", "dp-ftrl"])
def test_a_run_with_a_key_leaves_a_ledger_that_verifies_with_it(mode, key, tmp_path):
    _, run = federate(tmp_path, private(mode, {"evaluate_every": 0}, signing_key=key[0]))
    assert verify(run.path, public_key=key[1]).findings == ()


def test_every_checkpoint_is_signed(key, tmp_path):
    _, run = federate(tmp_path, private("central", {"evaluate_every": 0, "checkpoint_every": 1}, signing_key=key[0]))
    assert len(signed_entries(run)) == run.config.federation.rounds


def test_a_run_that_its_budget_ends_is_signed_to_its_last_entry(key, tmp_path):
    _, run = federate(tmp_path, private("central", budget_epsilon=2.2, signing_key=key[0]))
    assert run.records("warning") != []
    assert verify(run.path, public_key=key[1]).findings == ()


def test_a_run_that_goes_on_is_signed_anew(key, tmp_path):
    _, run = federate(tmp_path, private("central", budget_epsilon=2.2, signing_key=key[0]))
    raise_budget(run, 20.0)
    assert not verify(run.path, public_key=key[1]).holds
    go_on(run)
    assert verify(run.path, public_key=key[1]).findings == ()


def test_a_run_without_a_key_signs_nothing(tmp_path):
    _, run = federate(tmp_path, private("central", {"evaluate_every": 0}))
    assert signed_entries(run) == []


def test_where_the_key_lies_is_no_part_of_what_the_run_is(key):
    assert private("central", signing_key=key[0]).hash() == private("central").hash()


def test_a_key_that_is_not_there_stops_the_run_before_anything_is_released(tmp_path):
    with pytest.raises(PrivacyError, match="cannot read the key"):
        federate(tmp_path, private("central", signing_key=str(tmp_path / "nowhere")))
    assert list(tmp_path.rglob("privacy.sqlite")) == []


def test_a_key_without_a_ledger_to_sign_is_refused(key, tmp_path):
    config = parse({**toy_task.toy_config().model_dump(), "privacy": {"signing_key": key[0]}})
    with pytest.raises(PrivacyError, match="keeps none"):
        federate(tmp_path, config)
