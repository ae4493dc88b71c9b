"""A whole run: data, cloud training, federation, evaluation. The engine is a Flower ``Grid``, whichever one it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from flwr.clientapp import ClientApp
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from fedquilt.config import Config
from fedquilt.durable import replace_file
from fedquilt.errors import ConfigError, RunError
from fedquilt.graphs.datasets import load_split
from fedquilt.graphs.splits import Split
from fedquilt.graphs.subgraph import build_subgraphs, latest_clicks, subgraph_bytes
from fedquilt.runs import RESULTS, RunFolder
from fedquilt.seeds import key_for
from models.kernel import KernelWeights
from models.patches import initial_patch, patch_spec, require_inner_parts, require_parts
from server.cloud import Base, train_cloud
from server.exposure import make_ceiling, wants_ceiling
from server.in_process import InProcessGrid
from server.judged import examiner_of, judged, judged_last
from server.judges import Judges, make_judges
from server.lift import make_lift, wants_lift
from server.loop import run_federation
from server.panel import Panel, make_panel, require_open, require_same, wants_panel
from server.privacy import require_possible, summary
from server.private_cloud import CLOUD_LEDGER, require_cloud_privacy
from server.rollback import rollback_note, rolled_back
from server.root import RootData, require_root, wants_root
from server.task import Deployment, FederationResult, Hooks
from strategies.aggregation import make_aggregation
from strategies.evaluation import Evaluation
from strategies.rules import make_optimizer
from strategies.suspicion import require_suspicion

Progress = Callable[[str, int, int, str], None]
CLOUD_HISTORY = "cloud.json"
SPLIT = "split.json"
_SAMPLED_USERS = 1000  # for the mean bytes of a subgraph


def silent(stage: str, done: int, total: int, note: str = "") -> None:
    return None


def simulate(config: Config, run: RunFolder, client_app: ClientApp, progress: Progress = silent) -> dict[str, Any]:
    """Run, or go on with, everything in this process; -> what ``results.json`` holds."""
    with run.writing():
        deployment = prepare(config, run, progress)
        grid = InProcessGrid(client_app, config.federation.num_supernodes)
        result = run_federation(grid, config, deployment, run, hooks(config, run, progress))
        return finish(config, run, result)


def prepare(
    config: Config,
    run: RunFolder,
    progress: Progress = silent,
    split: Split | None = None,
    known_U: np.ndarray | None = None,
) -> Deployment:
    """Data, then the cloud model: trained, or read from the run folder where that was done before.

    ``split``: the data of the configuration as somebody left them, in place of these. ``known_U``: users whose accounts
    the cloud knows, from whom it draws its panel; all unless given.
    """
    _require_known_names(config)
    progress("data", 0, 1, config.data.dataset)
    split = split or load_split(config.data, config.split)
    progress("data", 1, 1, f"{len(split.train):,} training clicks, the cloud sees {len(split.cloud):,}")
    _require_same_data(run, split)
    require_root(config, split.cloud)
    panel = make_panel(config, split, known_U) if wants_panel(config.defence) else None
    if panel is not None:
        require_same(run, panel)
    base = _cloud(config, run, split, progress)
    weights = KernelWeights.of(base)
    spec = patch_spec(weights, config.patch)
    generator = torch.Generator().manual_seed(key_for(config.seed, use="initial-patch") >> 1)
    root = RootData(config, split.cloud, base) if wants_root(config) else None
    deployment = Deployment(spec, initial_patch(spec, generator).numpy(), base, root)
    if wants_ceiling(config.defence) or wants_lift(config.defence):
        deployment = _with_ceilings(config, deployment, make_judges(config, split.cloud, base, spec), panel)
    _record_device(config, run, split, weights, deployment)
    return deployment


def _with_ceilings(config: Config, deployment: Deployment, judges: Judges, panel: Panel | None) -> Deployment:
    defence = config.defence
    return replace(
        deployment,
        ceiling=make_ceiling(config, judges, deployment.spec) if wants_ceiling(defence) else None,
        lift=make_lift(defence, judges, panel) if wants_lift(defence) else None,
    )


def hooks(config: Config, run: RunFolder, progress: Progress = silent) -> Hooks:
    """Progress by round, and tables of what devices answered on validation clicks."""
    rounds = config.federation.rounds

    def on_round(record: Mapping[str, Any]) -> None:
        undone = rollback_note(record)
        note = f"{record['replies']} users, {record['num_rejected']} rejected" + (f"; {undone}" if undone else "")
        progress("federation", int(record["round"]), rounds, note)

    def on_evaluation(evaluation: Evaluation) -> Mapping[str, Any] | None:
        return judged(evaluation, load_split(config.data, config.split), config.evaluation)

    examine = examiner_of(lambda: load_split(config.data, config.split), config.evaluation)
    return Hooks(on_evaluation=on_evaluation, on_round=on_round, examine=examine)


def finish(config: Config, run: RunFolder, result: FederationResult) -> dict[str, Any]:
    """Test tables, the per-user file behind them, the final patch."""
    ceiling = {} if result.ceiling_I is None else {"ceiling_I": result.ceiling_I}
    run.write_arrays("patch.npz", patch_P=result.patch_P, **ceiling)
    split = load_split(config.data, config.split)
    results = {**judged_last(run, result.test, split, config.evaluation), "rounds": result.rounds}
    if spent := summary(run):
        results["privacy"] = spent
    if spent := summary(run, CLOUD_LEDGER):
        results["cloud_privacy"] = spent
    if undone := rolled_back(run.records("round")):
        results["rolled_back"] = undone
    for name, nodes in (("refused", result.test.refused), ("missing", result.test.missing)):
        if nodes:
            results[name] = list(nodes)
    run.write_json(RESULTS, results)
    return results


def _require_known_names(config: Config) -> None:
    """What would otherwise fail after the cloud has been trained."""
    if config.attack.name:
        raise ConfigError(f"attack.name = {config.attack.name!r}: attacks are simulated by `fedquilt attack run` only")
    federation, optimizer = config.federation, config.server_optimizer
    make_aggregation(federation)
    require_possible(config)
    require_cloud_privacy(config)
    require_suspicion(config)
    require_open(config)
    make_optimizer(optimizer.name, optimizer.learning_rate, optimizer.options)
    require_parts(config.patch.parts, "patch.parts")
    if config.meta.inner_steps:
        require_inner_parts(config.meta.inner_parts, config.patch.parts)
    if not config.patch.parts and federation.rounds:
        raise ConfigError("patch.parts is empty: there is nothing to federate; name a part or set federation.rounds=0")


def _require_same_data(run: RunFolder, split: Split) -> None:
    """A run that is resumed must find the log it began with."""
    found = {"protocol": split.protocol, "hash": split.hash, "log": split.train.hash}
    if not (run.path / SPLIT).exists():
        run.write_json(SPLIT, found)
    elif (begun := run.read_json(SPLIT)) != found:
        raise RunError(f"{run.path}: began with data {begun}, the log now gives {found}: restore it or start a new run")


def _cloud(config: Config, run: RunFolder, split: Split, progress: Progress) -> Base:
    if not run.cloud_path.exists():
        epochs = config.cloud.epochs
        trained = train_cloud(config, split, lambda r: progress("cloud", r["epoch"], epochs, _told(r)), run.path)
        progress("cloud", epochs, epochs, "")
        run.write_json(CLOUD_HISTORY, {"history": trained.history, "graph": trained.graph})
        replace_file(run.cloud_path, save_tensors(trained.base))
    history = run.read_json(CLOUD_HISTORY)["history"]
    for record in history[len(run.records("cloud")) :]:  # a run killed in between has some of them already
        run.append(record)
    return load_tensors(run.cloud_path.read_bytes())


def _told(epoch: Mapping[str, Any]) -> str:
    return f"epsilon {epoch['epsilon']:.2f}" if "epsilon" in epoch else f"loss {epoch['loss']:.3f}"


def _record_device(
    config: Config, run: RunFolder, split: Split, weights: KernelWeights, deployment: Deployment
) -> None:
    """What a device holds and what travels, in parameters and bytes; once a run."""
    if run.records("device"):
        return
    graph = config.graph
    users = np.flatnonzero(np.diff(split.train.offsets) > 0)[:_SAMPLED_USERS]
    contexts_UL = latest_clicks(split.train, users, graph.num_clicked)
    tables = deployment.base["neighbour_items"], deployment.base["neighbour_weights"]
    subgraphs = build_subgraphs(contexts_UL, *tables, graph.num_nodes, graph.num_clicked, graph.window)
    kernel = weights.num_kernel_parameters
    model = kernel + weights.item_vectors.numel() + weights.item_bias.numel()
    run.append(
        {
            "kind": "device",
            "patch_parameters": deployment.spec.num_parameters,
            "patch_bytes": 4 * deployment.spec.num_parameters,
            "kernel_parameters": kernel,
            "kernel_bytes": 4 * kernel,
            "model_parameters": model,
            "model_bytes": 4 * model,
            "subgraph_bytes": subgraph_bytes(subgraphs, weights.dim),
        }
    )
