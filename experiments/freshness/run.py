"""Is a federated patch worth anything when the cloud's log is stale? ``python -m experiments.freshness.run``.

The cloud trains on the first 60 % of the clicks in global time; devices hold what came since; the test is the last
click of the users who clicked after the cut. Every column is one run of the product (``server.simulate``) with other
overrides. Writes ``results.json`` and the README's tables.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from client.app import app as client_app
from experiments.freshness import readme
from experiments.results import ROOT, Row, write_results
from fedquilt.config import Config, load
from fedquilt.graphs.datasets import load_log, load_split
from fedquilt.graphs.groups import HEAD, TAIL, user_groups
from fedquilt.graphs.splits import after_cut, new_to_cloud
from fedquilt.metrics import ranking_metrics
from fedquilt.runs import RunFolder
from server.evaluate import EVALUATION
from server.simulate import CLOUD_HISTORY, simulate

HERE = Path(__file__).parent
DATASETS = {"ml-100k": "freshness-ml100k.toml", "bazaar": "freshness-bazaar.toml"}
KERNEL = 'patch.parts=["convolution","readout"]'
LOCAL_TRIALS = [(steps, rate) for steps in (1, 5) for rate in (0.03, 0.1)]
K = 10


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.freshness.run", description=__doc__)
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    parser.add_argument("--readme", action="store_true", help="only make the README's tables again")
    options = parser.parse_args(arguments)
    if not options.readme:
        torch.set_num_threads(1)
        for dataset in options.datasets.split(","):
            for seed in map(int, options.seeds.split(",")):
                with tempfile.TemporaryDirectory() as folder:
                    rows = list(study(dataset, seed, Path(folder)))
                write_results(options.json, rows, headline, key=("dataset", "column", "seed"))
    readme.update(HERE / "README.md", options.json)


def study(dataset: str, seed: int, folder: Path) -> Iterator[Row]:
    """One row a column."""
    shared = [f"seed={seed}"]
    ours, run = simulated(dataset, shared, folder)
    yield row(dataset, "stale cloud", seed, ours, run, "stale")
    yield row(dataset, "stale cloud + local subgraph", seed, ours, run, "base")
    yield row(dataset, "fedquilt, federated patch", seed, ours, run, "global")
    yield row(dataset, "fedquilt, then personal patch", seed, ours, run, "personal")
    best, _, chosen = max(
        (local_trial(dataset, shared, folder, run, steps, rate) for steps, rate in LOCAL_TRIALS), key=lambda t: t[0]
    )
    local, local_run = chosen
    yield {**row(dataset, "local fine-tuning only", seed, local, local_run, "personal"), "valid_ndcg": best}
    kernel = [KERNEL, "meta.inner_steps=0", "federation.upload_entries=0"]
    fedavg, fedavg_run = simulated(dataset, shared + kernel, folder, cloud=run)
    yield row(dataset, "FedAvg of the whole kernel", seed, fedavg, fedavg_run, "global")
    oracle, oracle_run = simulated(dataset, [*shared, "split.cloud_share=1.0", "federation.rounds=0"], folder)
    yield row(dataset, "oracle", seed, oracle, oracle_run, "base", cut_like=ours)


def local_trial(
    dataset: str, shared: list[str], folder: Path, cloud: RunFolder, steps: int, rate: float
) -> tuple[float, int, tuple[Config, RunFolder]]:
    """Fine-tuning of the kernel on each device, no federation; -> (validation NDCG@10, steps, the run)."""
    own = [f"evaluation.personal_steps={steps}", f"evaluation.personal_learning_rate={rate}", "federation.rounds=0"]
    inner = 'meta.inner_parts=["convolution","readout"]'
    config, run = simulated(dataset, [*shared, KERNEL, inner, *own], folder, cloud=cloud)
    evaluation = next(record for record in run.records("evaluation") if record["part"] == "valid")
    return evaluation["tables"]["personal"]["all"][f"NDCG@{K}"], steps, (config, run)


def simulated(
    dataset: str, overrides: Sequence[str], folder: Path, cloud: RunFolder | None = None
) -> tuple[Config, RunFolder]:
    """One run of the product; ``cloud``: a run whose cloud model is the same and need not be trained again."""
    config = load(ROOT / "experiments" / "configs" / DATASETS[dataset], overrides)
    if config.data.path:
        path = str((ROOT / config.data.path).resolve())
        config = config.model_copy(update={"data": config.data.model_copy(update={"path": path})})
    run = RunFolder.create(folder, config)
    if cloud is not None:
        shutil.copy(cloud.cloud_path, run.cloud_path)
        shutil.copy(cloud.path / CLOUD_HISTORY, run.path / CLOUD_HISTORY)
    simulate(config, run, client_app)
    return config, run


def row(
    dataset: str, column: str, seed: int, config: Config, run: RunFolder, variant: str, cut_like: Config | None = None
) -> Row:
    """HR and NDCG at 10 of one variant on the study's test users, by group, and the bytes that a round sent up."""
    stale = load_split((cut_like or config).data, (cut_like or config).split)
    arrays = run.read_arrays(EVALUATION)
    late = stale.test.users_H[after_cut(load_log((cut_like or config).data), stale)]
    mine_H = np.isin(arrays["client_ids"], late)
    ids_H = arrays["client_ids"][mine_H]
    metrics = ranking_metrics(arrays[f"greater_{variant}"][mine_H], arrays[f"ties_{variant}"][mine_H], (K,))
    activity_U = user_groups(stale.train)
    groups = {
        "all": np.ones(len(ids_H), bool),
        "tail": activity_U[ids_H] == TAIL,
        "head": activity_U[ids_H] == HEAD,
        "new": new_to_cloud(stale)[ids_H],
    }
    scores: dict[str, Mapping[str, float]] = {
        name: {"users": int(mask.sum()), **{m: float(metrics[m][mask].mean()) for m in (f"HR@{K}", f"NDCG@{K}")}}
        for name, mask in groups.items()
    }
    rounds = run.records("round") if variant in ("global", "personal") else []
    device = run.records("device")[0]
    sent = float(np.mean([r["bytes_up"] / r["replies"] for r in rounds])) if rounds else 0.0
    return {
        "dataset": dataset,
        "column": column,
        "seed": seed,
        "protocol": "loo-full, test clicks after the cut",
        "scores": scores,
        "bytes_up_per_user_per_round": sent,
        "model_bytes": device["model_bytes"],
        "patch_parameters": device["patch_parameters"],
    }


def headline(rows: list[Row]) -> dict[str, float]:
    """Means over seeds first, then ratios; the gap is that of NDCG@10 over all test users."""
    figures = {}
    for dataset, name in (("ml-100k", "gap_closed_ml100k"), ("bazaar", "gap_closed_bazaar")):
        if any(row["dataset"] == dataset for row in rows):
            figures[name] = gap_closed(rows, dataset)
    ours = [row for row in rows if row["column"] == "fedquilt, then personal patch"]
    figures["bytes_share"] = max(row["bytes_up_per_user_per_round"] / row["model_bytes"] for row in ours)
    real = "ml-100k" if any(row["dataset"] == "ml-100k" for row in rows) else "bazaar"
    for group in ("tail", "head"):
        figures[f"gain_{group}"] = mean(rows, real, "fedquilt, then personal patch", group) - mean(
            rows, real, "stale cloud + local subgraph", group
        )
    return figures


def gap_closed(rows: list[Row], dataset: str, column: str = "fedquilt, then personal patch") -> float:
    base = mean(rows, dataset, "stale cloud + local subgraph", "all")
    return (mean(rows, dataset, column, "all") - base) / (mean(rows, dataset, "oracle", "all") - base)


def mean(rows: list[Row], dataset: str, column: str, group: str, metric: str = f"NDCG@{K}") -> float:
    """Over seeds."""
    found = [r["scores"][group][metric] for r in rows if (r["dataset"], r["column"]) == (dataset, column)]
    return float(np.mean(found))


if __name__ == "__main__":
    main()
