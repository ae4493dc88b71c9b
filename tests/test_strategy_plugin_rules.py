"""A plug-in rule that breaks its contract fails the round by name, and the run can go on once it is mended."""

from __future__ import annotations

import sys

import pytest
from toy_task import federate, toy_config, toy_deployment, toy_task

from client.app import make_client_app
from fedquilt.errors import FederationError
from fedquilt.runs import RunFolder
from server.in_process import InProcessGrid
from server.loop import run_federation

RULE = """
import numpy as np, torch
class Rule:
    sensitivity, breakdown = None, 0.0
    def __call__(self, updates_KP, weights_K, state):
        {body}
{more}
"""
BROKEN = {
    "nan": ("return updates_KP.mean(0) * float('nan')", r"returned 10 numbers that are not finite of 10"),
    "shape": ("return updates_KP", r"returned torch.float32 \[10, 10\], expected float32 \[10\]"),
    "dtype": ("return updates_KP.mean(0).double()", r"returned torch.float64 \[10\]"),
    "numpy": ("return updates_KP.mean(0).numpy()", r"returned ndarray"),
    "none": ("return None", r"returned NoneType None"),
    "raises": ("raise KeyError('median')", r"raised KeyError: 'median'"),
}


@pytest.fixture
def plug_in(tmp_path, monkeypatch):
    """-> write(body): makes the module ``toyplugin`` with a rule of this body."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body: str, more: str = "") -> None:
        sys.modules.pop("toyplugin", None)
        (tmp_path / "toyplugin.py").write_text(RULE.format(body=body, more=more))
        for cached in tmp_path.glob("__pycache__/toyplugin*"):
            cached.unlink()  # written within the same second, it would be taken for the new one

    yield write
    sys.modules.pop("toyplugin", None)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_rule_is_named_with_what_it_returned(plug_in, tmp_path, fault):
    body, words = BROKEN[fault]
    plug_in(body)
    with pytest.raises(FederationError, match=f"round 1: aggregator toyplugin:Rule {words}"):
        federate(tmp_path, aggregator="toyplugin:Rule")


def test_a_state_that_cannot_be_stored_is_named(plug_in, tmp_path):
    plug_in("return updates_KP.mean(0)", "    def next_state(self, *arguments):\n        return {'rounds': 1}")
    with pytest.raises(FederationError, match=r"toyplugin:Rule: next_state returned \{'rounds': 1\}"):
        federate(tmp_path, aggregator="toyplugin:Rule")


def test_a_run_whose_rule_broke_goes_on_once_it_is_mended(plug_in, tmp_path):
    plug_in("return updates_KP.mean(0)")
    run = RunFolder.create(tmp_path, toy_config(aggregator="toyplugin:Rule"))
    grid = InProcessGrid(make_client_app(toy_task), 3)
    sound = run_federation(grid, run.config, toy_deployment(), RunFolder.create(tmp_path, run.config))
    plug_in("Rule.calls = getattr(Rule, 'calls', 0) + 1\n        return updates_KP.mean(0) if Rule.calls < 3 else None")
    with pytest.raises(FederationError, match="round 3: aggregator toyplugin:Rule returned NoneType"):
        run_federation(grid, run.config, toy_deployment(), run)
    plug_in("return updates_KP.mean(0)")
    assert run_federation(grid, run.config, toy_deployment(), run).patch_P.tobytes() == sound.patch_P.tobytes()
