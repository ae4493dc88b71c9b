"""A device's ledger that is taken away or put back while the device runs: nothing more is sent."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest

import client.device_ledger as module
from client.device_ledger import DeviceLedger, device_event
from fedquilt.errors import LedgerError
from fedquilt.privacy.terms import Terms

ALICE = np.array([7])


def send(device: DeviceLedger, round_: int) -> None:
    event = device_event(Terms("r", "local", 1.0, 4.0, 1e-6, f"{round_}:a"), round_, ALICE, 10, f"d{round_}")
    assert device.admit(event, ALICE).all()
    device.record([(event, ALICE)])


@pytest.fixture
def device(tmp_path) -> DeviceLedger:
    """It has sent two rounds, after its limit; beside it lies a copy from after the first."""
    device = DeviceLedger(tmp_path / "device.sqlite", 100.0)
    send(device, 1)
    shutil.copy(device.path, tmp_path / "older.sqlite")
    send(device, 2)
    return device


def test_a_ledger_that_was_deleted_is_not_begun_anew(device):
    device.path.unlink()
    with pytest.raises(LedgerError, match="has vanished"):
        send(device, 3)
    assert not device.path.exists()


@pytest.mark.parametrize("put_back", [shutil.copy, os.replace], ids=["in place", "as another file"])
def test_an_older_copy_is_refused(device, put_back):
    put_back(device.path.with_name("older.sqlite"), device.path)
    with pytest.raises(LedgerError, match="does not contain entry 3"):
        send(device, 3)


def test_an_empty_ledger_in_its_place_is_refused(device):
    device.path.unlink()
    module.Ledger.create(device.path).close()
    with pytest.raises(LedgerError, match="does not contain entry 3"):
        send(device, 3)


@pytest.mark.parametrize("taken", ["deleted", "put back"])
def test_ledgers_that_were_closed_to_make_room_are_remembered(device, taken, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_OPEN", 1)
    send(DeviceLedger(tmp_path / "another.sqlite"), 1)
    assert device.path not in module._open
    shutil.copy(device.path.with_name("older.sqlite"), device.path) if taken == "put back" else device.path.unlink()
    with pytest.raises(LedgerError, match=r"has vanished|does not contain entry 3"):
        send(device, 3)


def test_what_another_process_wrote_in_the_meantime_counts(device):
    other = module.Ledger.open(device.path)
    event = device_event(Terms("s", "local", 1.0, 4.0, 1e-6, "1:b"), 1, ALICE, 10, "d")
    other.append(event, ALICE)
    send(device, 3)
    assert device._account().spent[module.atom_of(event)][7] == 4
