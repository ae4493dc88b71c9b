"""The toy federation under every privacy mechanism, for tests."""

from __future__ import annotations

from pathlib import Path

import toy_task

from client.app import make_client_app
from fedquilt.config import Config, parse
from fedquilt.privacy.book import read_book
from fedquilt.runs import RunFolder
from server.in_process import InProcessGrid
from server.loop import run_federation

ROOT = Path(__file__).resolve().parents[1]
MODES = {
    "central": {"mode": "central"},
    "quantile": {"mode": "central", "quantile": 0.5, "quantile_noise": 2.0},
    "norms": {"mode": "central", "device_norms": True},
    "local": {"mode": "local", "sampler": "fixed-order"},
    "distributed": {"mode": "distributed", "sampler": "fixed-order"},
    "dp-ftrl": {"mode": "dp-ftrl", "sampler": "fixed-order"},
}


def private(mode: str, federation: dict | None = None, **privacy: object) -> Config:
    """24 users on 3 nodes, 4 rounds, 10 users a round expected (12 in two groups that take turns), noise 1."""
    noise = {} if "epsilon" in privacy else {"noise_multiplier": 1.0}
    given = toy_task.toy_config(**(federation or {})).model_dump()
    return parse({**given, "privacy": {**MODES[mode], **noise, **privacy}})


def go_on(run: RunFolder, factory=toy_task.toy_task, **node_config):
    grid = InProcessGrid(make_client_app(factory), run.config.federation.num_supernodes, node_config=node_config)
    return run_federation(grid, run.config, toy_task.toy_deployment(), run)


def federate(folder: Path, config: Config, factory=toy_task.toy_task, **node_config):
    """-> (result, run folder)."""
    run = RunFolder.create(folder, config)
    return go_on(run, factory, **node_config), run


def events(path: Path) -> list:
    return read_book(path / "privacy.sqlite" if path.is_dir() else path)[0].events


def sendings(path: Path) -> list:
    """The ledger's events of what left."""
    return [event for event in events(path) if event.releases]


def device_ledgers(run: RunFolder) -> list[Path]:
    return sorted(run.devices.glob("privacy-*.sqlite"))


def rejected(run: RunFolder) -> str:
    return str([record["rejected_reasons"] for record in run.records("round")])
