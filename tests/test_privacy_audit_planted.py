"""Bugs planted in the very code that a run executes: the audit finds each, and finds nothing where none is."""

from __future__ import annotations

import re

import numpy as np
import pytest
from audited_toy import audited, private_run

import client.privatise
import strategies.pipeline
import strategies.private
from fedquilt.privacy import mechanisms, samplers
from fedquilt.privacy.clipping import clip_rows
from fedquilt.privacy.randomness import Simulated
from fedquilt.seeds import generator_for


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return private_run(tmp_path_factory.mktemp("honest"))


def findings(run) -> str:
    found = audited(run)
    assert found["holds"] == (not found["findings"])
    return "; ".join(found["findings"])


def plant_noise(monkeypatch, noise):
    """``noise(total_P, std, source, context)`` in place of the mechanism's own."""
    monkeypatch.setattr(mechanisms, "noised", noise)


def test_an_honest_run_holds_and_its_lower_bound_is_below_the_claim(run):
    found = audited(run)
    assert found["holds"], found["findings"]
    assert 0 <= found["lower"] <= found["upper"]
    assert found["lower_by_method"]["noise as measured"] == pytest.approx(found["upper"], rel=0.2)


def test_noise_that_was_forgotten_is_found(run, monkeypatch):
    plant_noise(monkeypatch, lambda total_P, std, source, context: total_P.copy())
    assert "noise as measured: epsilon is at least inf" in findings(run)


def test_noise_scaled_by_the_wrong_norm_is_found(run, monkeypatch):
    honest = mechanisms.noised
    plant_noise(monkeypatch, lambda total_P, std, *where: honest(total_P, 0.5 * std, *where))  # C twice, at C = 0.5
    found = findings(run)
    assert re.search(r"has 0\.(49|50)\d* times the std", found)
    assert "noise as measured: epsilon is at least" in found


def test_clipping_after_averaging_is_found(run, monkeypatch):
    for module in (client.privatise, strategies.pipeline, strategies.private):
        monkeypatch.setattr(module, "clip_rows", lambda rows, norm, in_place=False: (rows, np.zeros(len(rows))))
    honest = mechanisms.noised
    monkeypatch.setattr(mechanisms, "require_clipped", lambda rows, norm: None)
    plant_noise(
        monkeypatch,
        lambda total_P, std, *where: honest(clip_rows(total_P[None].astype(np.float32), 0.5)[0][0], std, *where),
    )
    assert "users' rows are in the releases 0." in findings(run)


def test_the_same_noise_in_every_round_is_found(run, monkeypatch):
    monkeypatch.setattr(
        Simulated, "normals", lambda self, count, context: generator_for(self.seed).standard_normal(count)
    )
    assert "have the same noise" in findings(run)


@pytest.mark.slow
def test_the_same_noise_twice_in_one_release_is_found(run, monkeypatch):
    def tiled(self, count, context):
        half = generator_for(self.seed, use=context).standard_normal(count // 2)
        return np.concatenate([half, half])

    monkeypatch.setattr(Simulated, "normals", tiled)
    assert "noise repeats itself within a release, 300 entries on" in findings(run)


def test_fixed_cohorts_that_are_claimed_to_be_poisson_are_found(run, monkeypatch):
    def fixed(plan, round_):
        return np.sort(np.argsort(samplers._keyed_bits(plan, round_))[:100])

    monkeypatch.setitem(samplers._DRAWS, "poisson", fixed)
    assert "the sizes of cohorts" in findings(run)


@pytest.mark.slow
def test_a_noise_seed_that_every_run_uses_is_found(run, monkeypatch):
    def of_no_run(self, count, context):
        return generator_for(0, use=context.split("/")[1]).standard_normal(count)

    monkeypatch.setattr(Simulated, "normals", of_no_run)
    assert "of another with another seed have the same noise" in findings(run)


def test_a_sampling_seed_that_every_round_uses_is_found(run, monkeypatch):
    honest = samplers._keyed_bits
    monkeypatch.setattr(samplers, "_keyed_bits", lambda plan, round_: honest(plan, 0))
    assert "have the same cohort: a seed was used twice" in findings(run)


@pytest.mark.slow
def test_a_sampling_seed_that_every_run_uses_is_found(run, monkeypatch):
    honest = samplers._keyed_bits
    monkeypatch.setattr(
        samplers,
        "_keyed_bits",
        lambda plan, round_: honest(samplers.SamplingPlan(plan.sampler, plan.population_U, Simulated(0)), round_),
    )
    assert "two runs with different seeds drew the same cohort" in findings(run)


@pytest.mark.slow
def test_weights_that_users_claim_are_found(run, monkeypatch):
    honest = strategies.pipeline._gather

    def weighed(kept, *where):
        rows_KP = honest(kept, *where)
        return rows_KP * np.concatenate([reply.num_examples_K[rows] for reply, rows in kept])[:, None]

    monkeypatch.setattr(strategies.pipeline, "_gather", weighed)
    for module in (strategies.pipeline, strategies.private):
        monkeypatch.setattr(module, "clip_rows", lambda rows, norm, in_place=False: (rows, np.ones(len(rows))))
    monkeypatch.setattr(mechanisms, "require_clipped", lambda rows, norm: None)
    assert "or weighed by what users claim" in findings(run)
