"""Signed heads: from a key that a command makes, over the last head, and never taken on trust."""

from __future__ import annotations

import json
import sqlite3
import stat
import sys

import pytest
from tiny_ledger import kinds, write_run
from typer.testing import CliRunner

from cli.main import app, main
from fedquilt.privacy.events import Deviation
from fedquilt.privacy.ledger import Ledger
from fedquilt.privacy.signing import new_key, public_key, read_key
from fedquilt.privacy.verify import verify

KEY, OTHER = b"\1" * 32, b"\2" * 32


@pytest.fixture
def path(tmp_path):
    return tmp_path / "privacy.sqlite"


@pytest.fixture
def without_cryptography(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)


def signature_texts(path, key=KEY):
    """``key``: whose public half is asked for."""
    findings = verify(path, accountants=("rdp",), public_key=public_key(key)).findings
    return " ".join(finding.text for finding in findings if finding.kind == "signature")


def edit_heads(path, statement, *values):
    with sqlite3.connect(path) as db:
        db.execute(statement, values)
    db.close()


def test_a_signature_of_the_last_head_is_enough(path):
    write_run(path, rounds=2).sign(KEY)
    assert kinds(path, public_key=public_key(KEY)) == set()


def test_a_public_key_may_be_given_in_capitals(path):
    write_run(path, rounds=2).sign(KEY)
    assert kinds(path, public_key=public_key(KEY).upper()) == set()


def test_an_early_signature_does_not_vouch_for_later_entries(path):
    ledger = write_run(path, rounds=2)
    head = ledger.sign(KEY)
    ledger.append(Deviation("r", 2, "later"))
    assert f"the last entry that the key signed is {head.seq}" in signature_texts(path)


def test_a_new_signature_vouches_for_later_entries(path):
    ledger = write_run(path, rounds=2)
    ledger.sign(KEY)
    ledger.append(Deviation("r", 2, "later"))
    ledger.sign(KEY)
    assert signature_texts(path) == ""


def test_an_early_signature_is_no_finding_where_no_key_was_asked_for(path):
    ledger = write_run(path, rounds=2)
    ledger.sign(KEY)
    ledger.append(Deviation("r", 2, "later"))
    assert kinds(path) == set()


def test_the_last_head_signed_by_somebody_else_is_not_signed(path):
    ledger = write_run(path, rounds=2)
    ledger.sign(KEY)
    ledger.append(Deviation("r", 2, "later"))
    ledger.sign(OTHER)
    assert "nobody vouches for what came after" in signature_texts(path)


def test_a_forged_row_for_the_last_head_does_not_count_as_signed(path):
    ledger = write_run(path, rounds=2)
    head = ledger.head()
    edit_heads(path, "INSERT INTO heads VALUES (?, ?, ?, ?)", head.seq, head.hash, public_key(KEY), "00" * 64)
    texts = signature_texts(path)
    assert "does not hold" in texts
    assert "no head is signed with the key" in texts


def test_an_old_signature_moved_to_the_last_head_is_found(path):
    ledger = write_run(path, rounds=2)
    ledger.sign(KEY)
    ledger.append(Deviation("r", 2, "later"))
    head = ledger.head()
    edit_heads(path, "UPDATE heads SET seq = ?, hash = ?", head.seq, head.hash)
    assert "does not hold" in signature_texts(path)


@pytest.mark.parametrize("nonsense", [7, b"\0", "zz", ""])
def test_nonsense_in_place_of_a_signature_is_a_finding_and_no_crash(path, nonsense):
    write_run(path, rounds=2).sign(KEY)
    edit_heads(path, "UPDATE heads SET signature = ?", nonsense)
    assert "does not hold" in signature_texts(path)


def test_a_key_that_is_asked_for_where_signatures_cannot_be_checked_is_a_finding(path, request):
    write_run(path, rounds=2).sign(KEY)
    asked = public_key(KEY)
    request.getfixturevalue("without_cryptography")
    assert kinds(path, public_key=asked) == {"signature"}


def test_without_the_library_and_without_a_key_the_chain_alone_is_checked(path, request):
    write_run(path, rounds=2).sign(KEY)
    request.getfixturevalue("without_cryptography")
    assert kinds(path) == set()


def test_a_ledger_without_any_signature_and_without_the_library_is_no_pass_either(path, request):
    write_run(path, rounds=2)
    asked = public_key(KEY)
    request.getfixturevalue("without_cryptography")
    assert kinds(path, public_key=asked) == {"signature"}


def test_signing_one_head_twice_leaves_one_signature(path):
    ledger = write_run(path, rounds=2)
    assert ledger.sign(KEY) == ledger.sign(KEY)
    assert sqlite3.connect(path).execute("SELECT count(*) FROM heads").fetchone() == (1,)


# --- the key ---


def test_a_key_is_its_owners_alone_and_reads_back(tmp_path):
    public = new_key(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert public_key(read_key(tmp_path / "key")) == public


def test_no_two_keys_are_alike(tmp_path):
    assert new_key(tmp_path / "one") != new_key(tmp_path / "two")


# --- the verbs ---


def verb(*arguments):
    return CliRunner().invoke(app, ["privacy", *map(str, arguments)])


def test_a_run_is_signed_and_verified_by_commands_alone(tmp_path):
    write_run(tmp_path / "run.sqlite", rounds=2).close()
    public = json.loads(verb("keygen", tmp_path / "key", "--json").stdout)["public_key"]
    assert verb("verify", tmp_path / "run.sqlite", "--public-key", public).exit_code == 1
    signed = verb("sign", tmp_path / "run.sqlite", "--key", tmp_path / "key", "--json")
    assert json.loads(signed.stdout)["public_key"] == public
    assert verb("verify", tmp_path / "run.sqlite", "--public-key", public).exit_code == 0


def test_a_ledger_whose_chain_is_broken_is_not_signed(path, capsys):
    write_run(path, rounds=2).close()
    new_key(path.with_name("key"))
    with sqlite3.connect(path) as db:
        db.execute("DROP TRIGGER entries_stay")
        db.execute("UPDATE entries SET time_ns = 0 WHERE seq = 2")
    with pytest.raises(SystemExit):
        main(["privacy", "sign", str(path), "--key", str(path.with_name("key"))])
    assert "does not fit the chain" in capsys.readouterr().err


def test_a_key_is_never_overwritten(tmp_path, capsys):
    (tmp_path / "key").write_text("precious")
    with pytest.raises(SystemExit):
        main(["privacy", "keygen", str(tmp_path / "key")])
    assert "no key is overwritten" in capsys.readouterr().err
    assert (tmp_path / "key").read_text() == "precious"


def test_what_is_no_public_key_is_refused_in_words(path, capsys):
    write_run(path, rounds=2).close()
    with pytest.raises(SystemExit):
        main(["privacy", "verify", str(path), "--public-key", "key.hex"])
    assert "no Ed25519 public key" in capsys.readouterr().err


def test_signing_while_a_run_writes_signs_a_head_that_was(path):
    """Two handles on one file: what is signed is in the chain, whoever wrote last."""
    ledger, signer = write_run(path, rounds=2), Ledger.open(path)
    ledger.append(Deviation("r", 2, "meanwhile"))
    assert signer.sign(KEY) == ledger.head()
    assert signature_texts(path) == ""
