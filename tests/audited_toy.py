"""A private run of the toy federation, and its audit, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import toy_task

from client.app import make_client_app
from client.canaries import CanaryTasks, canary_spec
from fedquilt.config import parse
from fedquilt.runs import RunFolder
from server.audit import Settings, audit
from server.in_process import InProcessGrid
from server.loop import run_federation

PARAMETERS = 600


def private_run(folder: Path, users: int = 300, federation: dict[str, Any] | None = None, **privacy: Any) -> RunFolder:
    """9 rounds, 100 users a round expected, one node. The recorded patch is made 600 wide: room for canaries."""
    given = {"rounds": 9, "cohort_size": 100, "num_supernodes": 1, "evaluate_every": 0, **(federation or {})}
    config = toy_task.toy_config(**given)
    tree = {**config.model_dump(), "privacy": {"mode": "central", "noise_multiplier": 1.0, **privacy}}
    tree["data"]["num_users"] = users
    config = parse(tree)
    run = RunFolder.create(folder, config)
    grid = InProcessGrid(make_client_app(toy_task.toy_task), config.federation.num_supernodes)
    run_federation(grid, config, toy_task.toy_deployment(), run)
    run.write_arrays("patch.npz", patch_P=np.zeros(PARAMETERS, np.float32))
    return run


def audited(run: RunFolder, **settings: Any) -> dict[str, Any]:
    given = Settings(**{"canaries": 200, "accountants": ("rdp",), **settings})
    return audit(run, given, lambda them, users_U: make_client_app(CanaryTasks(them, users_U)), canary_spec)
