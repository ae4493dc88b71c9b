"""The ServerApp, for Flower's own engines: ``flwr run`` on Ray, or a SuperLink with SuperNodes.

Run-config keys: ``config`` (absolute path of a TOML file), ``set`` (space-separated ``key=value`` overrides) and
``run-dir`` (a run folder to go on with, or the folder in which a new one is made).
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from logging import INFO
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.supercore import log

from fedquilt.config import Config, load
from fedquilt.errors import ConfigError, RunError
from fedquilt.runs import CONFIG, RunFolder
from server.loop import run_federation
from server.privacy import require_deployable
from server.task import Deployment, FederationResult, Hooks

Prepare = Callable[[Config, RunFolder], Deployment]
MakeHooks = Callable[[Config, RunFolder], Hooks]
Finish = Callable[[Config, RunFolder, FederationResult], Any]


def _plain_hooks(config: Config, run: RunFolder) -> Hooks:
    return Hooks(on_evaluation=lambda evaluation: evaluation.means())


def _done(config: Config, run: RunFolder, result: FederationResult) -> None:
    run.write_arrays("patch.npz", patch_P=result.patch_P)


def make_server_app(
    prepare: Prepare,
    hooks: MakeHooks = _plain_hooks,
    finish: Finish = _done,
    run_config: Mapping[str, Any] | None = None,
) -> ServerApp:
    """``run_config`` holds defaults, for engines that pass none of their own (``run_simulation``)."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        run = open_run({**(run_config or {}), **context.run_config})
        log(INFO, "run folder %s", run.path)
        require_deployable(run.config, grid)
        with run.writing():
            deployment = prepare(run.config, run)
            result = run_federation(grid, run.config, deployment, run, hooks(run.config, run))
            finish(run.config, run, result)

    return server_app


def open_run(run_config: Mapping[str, Any]) -> RunFolder:
    """The run folder that a run-config names. Paths must be absolute: the working directory is the SuperLink's."""
    given = {key: str(run_config.get(key, "")) for key in ("config", "set", "run-dir")}
    for key in ("config", "run-dir"):
        if given[key] and not Path(given[key]).is_absolute():
            raise ConfigError(f"run-config {key} = {given[key]!r}: give an absolute path")
    if not given["run-dir"]:
        raise ConfigError("run-config lacks run-dir: the absolute path of a run, or of the folder for a new one")
    folder = Path(given["run-dir"])
    if not (folder / CONFIG).is_file():
        return RunFolder.create(folder, load(given["config"] or None, shlex.split(given["set"])))
    if given["config"] or given["set"]:
        raise RunError(f"{folder} is a run and keeps its own configuration: leave out config and set")
    return RunFolder.open(folder)


def _prepare(config: Config, run: RunFolder) -> Deployment:
    from server.panel import require_named
    from server.simulate import prepare  # imports torch and the data; building the app bundle must not

    require_named(config)
    return prepare(config, run)


def _hooks(config: Config, run: RunFolder) -> Hooks:
    from server.simulate import hooks

    return hooks(config, run)


def _finish(config: Config, run: RunFolder, result: FederationResult) -> None:
    from server.simulate import finish

    finish(config, run, result)


app = make_server_app(_prepare, _hooks, _finish)
