"""Central noise is refused for rules whose rows are not each user's own, before a run asks anybody."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from private_toy import private

from fedquilt.errors import PrivacyError
from server.mechanisms import require_mode
from strategies.central import require_private
from strategies.independence import declared, mixing
from strategies.rules import AGGREGATORS, PRE_RULES

RULE = """
import torch
from dataclasses import dataclass
@dataclass(frozen=True)
class Rule:
    sensitivity, breakdown = 2.0, 0.0
    def __call__(self, updates_KP, weights_K, *rest):
        return (updates_KP, weights_K, *rest) if len(rest) and hasattr(rest[0], "run_seed") else updates_KP.mean(0)
    def own_rows(self, u):
        {body}
"""
MIXING = {
    "centred": "return u - u.mean(0)",
    "median norm": "return u * (u.norm(dim=1).median() / u.norm(dim=1, keepdim=True).clamp(min=1e-9)).clamp(max=1)"
    " if len(u) else u",
    "largest coordinate of all": "return u / u.abs().max().clamp(min=1) if len(u) else u",
    "cumulative": "return u.cumsum(0)",
    "first four": "return u * (torch.arange(len(u)) < 4)[:, None]",
    "number of users": "return u / max(len(u), 1)",
    "centred where there are many": "return u - u.mean(0) if len(u) > 100 else u",
    "without duplicates": "return u * torch.tensor([not any(torch.equal(a, b) for b in u[:i])"
    " for i, a in enumerate(u)], dtype=torch.bool).view(-1, 1)",
    "where a huge row is among them": "return u * float(not len(u) or u.abs().max() < 1e20)",
    "random": "return u * torch.rand(len(u), 1)",
}
MISSHAPEN = {
    "fewer": ("return u[:3]", r"returns torch.float32 \[3, 3\] for \[7, 3\]"),
    "whole numbers": ("return u.long()", r"returns torch.int64"),
    "nothing": ("return u if len(u) < 2 else None", r"returns NoneType for 2 users"),
    "raises": ("raise KeyError('median')", r"raises KeyError: 'median'"),
    "no users": ("return u / (u.max() * 0 + 1)", r"raises RuntimeError: .*"),
}


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """-> write(body): a rule, and pre-rule, ``ownplugin:Rule`` with ``own_rows`` of this body."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(body: str) -> None:
        sys.modules.pop("ownplugin", None)
        (tmp_path / "ownplugin.py").write_text(RULE.format(body=body))

    yield write
    sys.modules.pop("ownplugin", None)


@pytest.mark.parametrize("body", MIXING.values(), ids=MIXING)
def test_a_rule_that_mixes_users_is_refused_by_name(body, plug_in):
    plug_in(body)
    with pytest.raises(
        PrivacyError, match=r"aggregator 'ownplugin:Rule': its `own_rows` are not each user's own: user"
    ):
        require_private(private("central", {"aggregator": "ownplugin:Rule"}))


@pytest.mark.parametrize("mode", ["central", "quantile", "norms", "dp-ftrl"])
def test_every_mode_whose_noise_the_cloud_adds_to_the_sum_refuses_it(mode, plug_in):
    plug_in(MIXING["centred"])
    with pytest.raises(PrivacyError, match="not each user's own"):
        require_mode(private(mode, {"aggregator": "ownplugin:Rule"}))


def test_a_pre_rule_that_mixes_users_is_refused_by_name(plug_in):
    plug_in(MIXING["median norm"])
    with pytest.raises(PrivacyError, match="pre-rule 'ownplugin:Rule': its `own_rows` are not"):
        require_private(private("central", {"pre_rules": ("clipping", "ownplugin:Rule")}))


def test_the_refusal_says_whose_row_moved_and_on_which_rows(plug_in):
    plug_in(MIXING["centred"])
    with pytest.raises(PrivacyError, match=r"user 0 gets another row where .* \(rows: 2 ordinary\)"):
        require_private(private("central", {"aggregator": "ownplugin:Rule"}))


@pytest.mark.parametrize(("body", "words"), MISSHAPEN.values(), ids=MISSHAPEN)
def test_own_rows_that_are_no_rows_are_refused(body, words, plug_in):
    plug_in(body)
    with pytest.raises(PrivacyError, match=f"aggregator 'ownplugin:Rule': its `own_rows` .*{words}"):
        require_private(private("central", {"aggregator": "ownplugin:Rule"}))


@pytest.mark.parametrize(
    "body",
    ["return u", "return u.clamp(-0.1, 0.1)", "return 5 * u", "return u.renorm(2, 0, 0.5)", "return u * (u > 0)"],
)
def test_a_plug_in_whose_rows_are_each_users_own_is_taken(body, plug_in):
    plug_in(body)
    steps = require_private(private("central", {"aggregator": "ownplugin:Rule", "pre_rules": ("ownplugin:Rule",)}))
    assert len(steps) == 2


@pytest.mark.parametrize("clipping_norm", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_our_own_rules_are_taken_at_any_clipping_norm(clipping_norm):
    for name in ("mean", "weighted-mean"):
        given_ = {"aggregator": name, "pre_rules": ("clipping",), "clipping_norm": clipping_norm}
        assert len(require_private(private("central", given_))) == 2


def test_all_of_our_rules_that_declare_own_rows_pass_the_probe():
    made = [kind() for registry in (AGGREGATORS, PRE_RULES) for kind in map(registry.__getitem__, registry)]
    told = {type(rule).__name__: mixing(own) for rule in made if (own := declared(rule))}
    assert {"Mean", "WeightedMean", "Clipping"} <= set(told)
    assert not any(told.values())


def test_norm_bounding_passes_the_probe_with_a_given_bound_only():
    assert mixing(AGGREGATORS["norm-bounding"](bound=0.3).own_rows) == ""
    assert declared(AGGREGATORS["norm-bounding"]()) is None


def test_the_summed_chain_is_tried_as_well(plug_in, monkeypatch):
    plug_in(MIXING["cumulative"])
    monkeypatch.setattr("strategies.central.mixing", lambda own_rows: "")
    with pytest.raises(PrivacyError, match=r"clipping then ownplugin:Rule: without user \d the sum moves by"):
        require_private(private("central", {"pre_rules": ("clipping",), "aggregator": "ownplugin:Rule"}))


@dataclass(frozen=True)
class Leaks:
    """Every row its own, and of every other row's mean a share."""

    share: float

    def own_rows(self, updates_KP):
        mean = updates_KP.mean(0) if len(updates_KP) else updates_KP.sum(0)
        return updates_KP + self.share * mean


@settings(max_examples=20, deadline=None)
@given(share=st.floats(1e-4, 10) | st.floats(-10, -1e-4))
def test_any_share_of_the_other_users_is_found(share):
    assert "gets another row" in mixing(Leaks(share).own_rows)


def test_the_probe_tries_the_same_rows_every_time():
    seen: list[list[torch.Tensor]] = []
    for _ in range(2):
        torch.rand(3)  # nobody else's generator counts
        seen.append([])
        mixing(lambda rows: seen[-1].append(rows) or rows)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))
