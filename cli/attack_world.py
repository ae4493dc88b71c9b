"""One attack against one rule, simulated in this process: the glue between attackers, cloud and measures."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.numpy import save as save_tensors

from cli.scan import scan_patch
from client.app import make_client_app, recommender
from client.attacks.conspiracy import Conspiracy
from client.attacks.contract import make_attack
from client.attacks.evasion import Device, Prey
from client.attacks.laboratory import Laboratory
from client.attacks.logs import appended
from client.attacks.plan import Plan, keyed_order, make_plan
from client.attacks.poisoned_task import PoisonedTasks, forged
from client.recommend import RecommendTask
from fedquilt.config import AttackConfig, Config
from fedquilt.durable import replace_file
from fedquilt.errors import ConfigError, FederationError
from fedquilt.graphs.datasets import load_split
from fedquilt.graphs.splits import Split
from fedquilt.graphs.subgraph import latest_clicks
from fedquilt.runs import RunFolder
from fedquilt.seeds import generator_for
from server.cloud import train_cloud
from server.evaluate import Part
from server.in_process import InProcessGrid
from server.loop import run_federation
from server.oracle import RuleOracle
from server.robustness import (
    exposure,
    honest_tables,
    not_clicked,
    rejections,
    success_by_budget,
    top_lists,
    trajectory,
    turned_away,
)
from server.rollback import rollback_note
from server.simulate import CLOUD_HISTORY, Progress, finish, hooks, prepare
from server.tampered import TamperedGrid
from server.task import Deployment, FederationResult

Row = dict[str, Any]
_PREY = 40  # honest users on whom evasion is tried
_TRIGGERED = 200  # honest users who get the trigger


@dataclass(frozen=True)
class World:
    """Who attacks whom. ``config`` is what the cloud deploys: it names no attack."""

    config: Config
    attack_config: AttackConfig
    attack: Any
    split: Split
    plan: Plan

    @property
    def malicious_M(self) -> np.ndarray:
        return self.plan.malicious_M


def make_world(config: Config) -> World:
    """From a configuration with an [attack]; name "" is the clean run."""
    attack = make_attack(config.attack.name, config.attack.options) if config.attack.name else None
    if config.evaluation.share != "ranks":
        told = f"evaluation.share = {config.evaluation.share!r}"
        raise ConfigError(f"{told}: attacks are measured by users' ranks, set it to 'ranks'")
    clean = config.model_copy(update={"attack": AttackConfig()})
    split = load_split(config.data, config.split)
    ids_U = RecommendTask(clean, split, np.arange(split.train.num_users)).client_ids_U
    plan = make_plan(config.attack, split.train, ids_U, config.seed, attack, config.federation.num_supernodes)
    return World(clean, config.attack, attack, split, plan)


def run_attack(config: Config, folder: Path, clouds: Path | None = None, progress: Progress | None = None) -> Row:
    """One simulation; -> its row of results. ``clouds``: a folder that keeps trained clouds, one for each seed."""
    world = make_world(config)
    tell = progress or _silent
    run = RunFolder.create(folder, world.config)
    replace_file(run.path / "attack.json", json.dumps(world.attack_config.model_dump(), indent=2).encode())
    _cloud(world, run, clouds)
    with run.writing():
        began = time.perf_counter()
        deployment = prepare(world.config, run, tell, _as_the_cloud_has_it(world), _honest(world))
        root = deployment.root
        oracle = RuleOracle(world.config, deployment.spec, (lambda *of: root.update(*of)[0]) if root else None)
        tables: list[tuple[int, dict[str, dict[str, float]]]] = []
        standard = hooks(world.config, run, tell)

        def on_evaluation(evaluation: Any) -> Mapping[str, Any] | None:
            arrays = {**evaluation.arrays, "client_ids": evaluation.client_ids_U}
            part = cast(Part, evaluation.part)
            measured = honest_tables(arrays, world.split, part, world.malicious_M, world.plan.targets_T)
            if part == "valid":
                tables.append((evaluation.round_, measured))
            return {"tables": {}, "honest": measured}

        def on_round(record: Mapping[str, Any]) -> None:
            if rollback_note(record):
                oracle.undo()
            standard.on_round(record)

        grid = _grid(world, deployment, oracle)
        told = replace(standard, on_evaluation=on_evaluation, on_round=on_round)
        result = run_federation(grid, world.config, deployment, run, told)
        finish(world.config, run, result)
    run.set_status("done")
    seconds = time.perf_counter() - began
    return _row(world, run, deployment, result, oracle, tables, seconds)


def _silent(stage: str, done: int, total: int, note: str = "") -> None:
    return None


# --- wiring ---


def _grid(world: World, deployment: Deployment, oracle: RuleOracle) -> Any:
    """Malicious nodes and colluders around the in-process grid; without an attack, the oracle still counts."""
    nodes = world.config.federation.num_supernodes
    forging = world.attack is not None and world.attack.kind == "clicks"
    factory = PoisonedTasks(world.attack, world.plan) if forging else recommender
    grid = InProcessGrid(make_client_app(factory), nodes)
    tampering = world.attack is not None and world.attack.kind in ("updates", "replies")
    conspiracy = Conspiracy(
        attack=world.attack,
        plan=world.plan if tampering else replace(world.plan, malicious_M=world.plan.malicious_M[:0]),
        spec=deployment.spec,
        clipping_norm=world.config.federation.clipping_norm,
        oracle=oracle,
        laboratory=laboratory(world, deployment) if tampering else None,
    )
    return TamperedGrid(grid, conspiracy)


def laboratory(world: World, deployment: Deployment) -> Laboratory:
    public = keyed_order(_honest(world), world.plan.seed, "public")
    return Laboratory.of(world.config, world.split.train, deployment.spec, deployment.base, public)


def _honest(world: World) -> np.ndarray:
    """Of them are those whose clicks are public, and those whose accounts the cloud knows: its panel."""
    everyone = np.unique(world.split.train.users_C)
    return everyone[~world.plan.is_malicious(everyone)]


def _poisons_the_cloud(world: World) -> bool:
    return world.attack is not None and world.attack.kind == "cloud-clicks"


def _as_the_cloud_has_it(world: World) -> Split:
    """With the forged clicks, from which it also draws the users who judge."""
    if not _poisons_the_cloud(world):
        return world.split
    return replace(world.split, cloud=forged(world.split.cloud, world.attack, world.plan))


def _cloud(world: World, run: RunFolder, clouds: Path | None) -> None:
    """The cloud model, trained on a poisoned log or taken from an earlier run with the same one."""
    if _poisons_the_cloud(world):
        trained = train_cloud(world.config, _as_the_cloud_has_it(world))
        run.write_json(CLOUD_HISTORY, {"history": trained.history, "graph": trained.graph})
        replace_file(run.cloud_path, save_tensors(trained.base))
        return
    if clouds is None:
        return
    kept = clouds / f"{_cloud_key(world.config)}"
    if not (kept / "cloud.safetensors").exists():
        kept.mkdir(parents=True, exist_ok=True)
        trained = train_cloud(world.config, world.split)
        replace_file(kept / CLOUD_HISTORY, json.dumps({"history": trained.history, "graph": trained.graph}).encode())
        replace_file(kept / "cloud.safetensors", save_tensors(trained.base))
    shutil.copy(kept / "cloud.safetensors", run.cloud_path)
    shutil.copy(kept / CLOUD_HISTORY, run.path / CLOUD_HISTORY)


def _cloud_key(config: Config) -> str:
    """What the cloud's training depends on, and nothing of the federation."""
    return Config(seed=config.seed, data=config.data, split=config.split, graph=config.graph, cloud=config.cloud).hash()


# --- measures ---


def _row(
    world: World,
    run: RunFolder,
    deployment: Deployment,
    result: FederationResult,
    oracle: RuleOracle,
    tables: list[tuple[int, dict[str, dict[str, float]]]],
    seconds: float,
) -> Row:
    config, records = world.config, run.records("round")
    test = honest_tables(
        {**result.test.arrays, "client_ids": result.test.client_ids_U},
        world.split,
        "test",
        world.malicious_M,
        world.plan.targets_T,
    )
    # From the rule's weights, and from the records: what the pipeline turned away before the rule saw it.
    away = [*oracle.zero_weight, *turned_away(records)]
    row: Row = {
        "dataset": config.data.dataset,
        "attack": world.attack_config.name or "none",
        "options": dict(world.attack_config.options),
        "rule": config.federation.aggregator,
        "malicious": world.attack_config.malicious,
        "malicious_share": world.plan.share,
        "targets": world.attack_config.targets,
        "seed": config.seed,
        "rounds": config.federation.rounds,
        "test": test,
        "valid": tables[-1][1],
        "trajectory": {f"ER@{k}": trajectory(tables, variant="global", metric=f"ER@{k}") for k in (5, 10, 20)},
        "rejected": rejections(
            sorted({*oracle.judged, *turned_away(records)}), away, world.split.train, world.malicious_M
        ),
        "seconds_a_round": float(np.mean([record["seconds"] for record in records])) if records else 0.0,
        "seconds": seconds,
        "run": run.name,
    }
    if world.attack is not None and world.attack.goal == "backdoor":
        row["backdoor"] = backdoor(world, deployment, result)
        found = scan_patch(config, deployment.base, result.patch_P, world.split.cloud.popularity_I)
        suspected = [suspect["item"] for suspect in found["suspects"]]
        row["scan"] = {**found, "found": bool(np.isin(world.plan.targets_T, suspected).any())}
    if world.attack is not None and world.attack.kind == "inference":
        row["evasion"] = evasion(world, deployment, result)
    return row


def backdoor(world: World, deployment: Deployment, served: FederationResult) -> dict[str, dict[str, float]]:
    """{variant: {"triggered", "clean"}}: ER@10 of the target among honest users, with the trigger as their last
    clicks and without it. ``personal`` is after the user's own steps on clicks that hold the trigger.
    """
    rng = generator_for(world.plan.seed, use="triggered-users")
    honest = np.setdiff1d(np.unique(world.split.test.users_H), world.malicious_M)
    users = np.sort(rng.permutation(honest)[:_TRIGGERED])
    triggered = replace(world.split, train=appended(world.split.train, users, world.plan.trigger_S))
    with_it, without = (_shown(world, deployment, served, split, users) for split in (triggered, world.split))
    return {name: {"triggered": with_it[name], "clean": without[name]} for name in with_it}


def _shown(
    world: World, deployment: Deployment, served: FederationResult, split: Split, users: np.ndarray
) -> dict[str, float]:
    task = RecommendTask(world.config, split, users)
    task.install(deployment.base)
    if served.ceiling_I is not None:
        task = task.under(served.ceiling_I)
    personal_KR = np.zeros((len(users), task.personal_size), np.float32)
    open_UT = not_clicked(split, "test", users, world.plan.targets_T)
    seen_UI = task._seen(users, "test")
    return {
        variant: exposure(top_lists(scores.numpy(), seen_UI, 10), open_UT, world.plan.targets_T, 10)
        for variant, scores in task.scores(users, served.patch_P, personal_KR)
        if variant != "stale"
    }


def evasion(world: World, deployment: Deployment, served: FederationResult) -> dict[str, Any]:
    """{"success": share of honest users who see the target after 0, 1, ... insertions, "users", "budget"}."""
    lab = laboratory(world, deployment)
    device = Device(lab, served.patch_P, served.ceiling_I)
    rng = generator_for(world.plan.seed, use="prey")
    honest = np.setdiff1d(np.unique(world.split.test.users_H), world.malicious_M)
    users = rng.permutation(honest)[:_PREY]
    contexts_UL = latest_clicks(world.split.train, users, world.config.graph.num_clicked)
    target = int(world.plan.targets_T[0])
    won = []
    for user, context_L in zip(users, contexts_UL, strict=True):
        seen_I = np.zeros(world.split.train.num_items, bool)
        seen_I[world.split.train.items_of(int(user))] = True
        if not seen_I[target]:
            rng_U = generator_for(world.plan.seed, 0, int(user), "evasion")
            won.append(world.attack.gaps(device, Prey(context_L, seen_I, target), rng_U) > 0)
    if not won:
        raise FederationError(f"evasion: every user drawn has clicked item {target}; name another target")
    return {"success": success_by_budget(np.array(won)), "users": len(won), "budget": world.attack.budget}
