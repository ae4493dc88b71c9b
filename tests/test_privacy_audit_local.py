"""Canary devices in real rounds of a local run: what their noised rows say on the way to the cloud."""

from __future__ import annotations

import pytest
from audited_toy import audited, private_run

from fedquilt.privacy import mechanisms


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    return private_run(folder, users=120, federation={"rounds": 3, "cohort_size": 60}, mode="local", sampler="none")


def test_an_honest_local_run_holds_and_its_lower_bound_is_below_the_claim(run):
    found = audited(run, canaries=120)
    assert found["holds"], found["findings"]
    assert 1 < found["lower"] < found["upper"]
    assert found["neighbours"] == "replace-one"


def test_noise_that_devices_forgot_is_found(run, monkeypatch):
    monkeypatch.setattr(mechanisms, "noised", lambda total_P, *where: total_P.copy())
    assert "noise as measured: epsilon is at least inf" in "; ".join(audited(run, canaries=120)["findings"])


def test_noise_that_devices_share_is_found(run, monkeypatch):
    honest = mechanisms.noised
    monkeypatch.setattr(
        mechanisms, "noised", lambda total_P, std, source, context: total_P + honest(0 * total_P, std, source, "all")
    )
    assert "have the same noise" in "; ".join(audited(run, canaries=120)["findings"])
