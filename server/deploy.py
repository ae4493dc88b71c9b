"""A whole run over real devices: as in a simulation, but the grid is the gateway."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedquilt.config import Config
from fedquilt.graphs.datasets import load_split
from fedquilt.graphs.device_logs import write_device_log
from fedquilt.runs import RunFolder
from server.grpc_grid import GrpcGrid
from server.limits import Limits
from server.live.watch import Watch, monitor_of
from server.loop import run_federation
from server.panel import require_named
from server.privacy import require_secret
from server.recommend import Recommender
from server.simulate import Progress, finish, hooks, prepare, silent

Listening = Callable[[int], None]


def serve(
    config: Config,
    run: RunFolder,
    keys: Path,
    listen: tuple[str, int],
    progress: Progress = silent,
    listening: Listening = lambda port: None,
    storage: str = "",
    watch: Watch | None = None,
    limits: Limits | None = None,
    stay: bool = False,
) -> dict[str, Any]:
    """Prepare, listen, run the rounds that are left; -> what ``results.json`` holds. ``listening`` is told the port.

    ``storage``: the URL of enrolments, as ``server.storage.open_storage`` takes it. DrainedError where ``watch`` says
    that the process was told to stop. With ``stay`` the gateway goes on recommending after the last round, until then.
    """
    require_named(config)
    require_secret(config)  # the loop asks again, but only once the cloud has been trained
    watch = watch or Watch(monitor_of(run))
    with run.writing():
        deployment = prepare(config, run, progress)
        titles = load_split(config.data, config.split).train.item_titles
        recommender = Recommender(config, deployment.spec, deployment.base, titles)
        num_nodes = config.federation.num_supernodes
        given: dict[str, Any] = {"limits": limits, "storage": storage, "observer": watch.monitor}
        with GrpcGrid(keys, deployment.spec, num_nodes, *listen, recommender=recommender, **given) as grid:
            listening(grid.port)
            served = watch.hooks(replace(hooks(config, run, progress), on_patch=recommender.take))
            with watch.rounds(grid):
                result = run_federation(grid, config, deployment, run, served)
            results = finish(config, run, result)
            if stay:
                watch.stay()
        return results


def write_device_logs(config: Config, folder: Path) -> list[Path]:
    """One log a device: that of the users whose id modulo the number of devices is its own, as in a simulation."""
    split, count = load_split(config.data, config.split), config.federation.num_supernodes
    paths = [folder / f"device-{number:05d}.npz" for number in range(count)]
    for number, path in enumerate(paths):
        write_device_log(path, split, np.arange(number, split.train.num_users, count))
    return paths
