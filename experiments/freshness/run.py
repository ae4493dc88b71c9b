"""Is a federated patch worth anything when the cloud's log is stale? ``python -m experiments.freshness.run``.

The cloud trains on the first 60 % of the clicks in global time; devices hold what came since; the test is the last
click of the users who clicked after the cut. Every column is one run of the product (``server.simulate``) with other
overrides. Writes ``results.json`` and the README's tables.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from client.app import app as client_app
from experiments.freshness import readme
from experiments.freshness.trials import FEDAVG, JUDGED_BY, LOCAL, ORACLE, OURS, TRIALS_OF, Overrides, chosen, overrides
from experiments.results import ROOT, Row, write_results
from fedquilt.config import Config, load
from fedquilt.errors import RunError
from fedquilt.graphs.datasets import load_log, load_split
from fedquilt.graphs.groups import HEAD, TAIL, user_groups
from fedquilt.graphs.splits import after_cut, new_to_cloud
from fedquilt.metrics import ranking_metrics
from fedquilt.runs import RunFolder
from server.evaluate import EVALUATION
from server.simulate import CLOUD_HISTORY, simulate

HERE = Path(__file__).parent
DATASETS = {"ml-100k": "freshness-ml100k.toml", "bazaar": "freshness-bazaar.toml"}
PERSONAL, BASE = "fedquilt, then personal patch", "stale cloud + local subgraph"
COLUMNS = {  # of the README: which run, and which variant of what its devices answered
    "stale cloud": (OURS, "stale"),
    BASE: (OURS, "base"),
    LOCAL: (LOCAL, "personal"),
    FEDAVG: (FEDAVG, "global"),
    "fedquilt, federated patch": (OURS, "global"),
    PERSONAL: (OURS, "personal"),
    ORACLE: (ORACLE, "base"),
}
PER_USER = (BASE, PERSONAL, ORACLE)  # columns whose rows hold every test user's NDCG@10, for paired intervals
K = 10


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.freshness.run", description=__doc__)
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--json", type=Path, default=HERE / "results.json", help="tuning.json lies beside it")
    parser.add_argument("--readme", action="store_true", help="only make the README's tables again")
    options = parser.parse_args(arguments)
    if not options.readme:
        torch.set_num_threads(1)
        for dataset in options.datasets.split(","):
            with tempfile.TemporaryDirectory() as folder:
                runs = Runs(dataset, Path(folder))
                for seed in map(int, options.seeds.split(",")):
                    rows = study(runs, seed, options.json.with_name("tuning.json"))
                    write_results(options.json, rows, headline, key=("dataset", "column", "seed"))
    readme.update(HERE / "README.md", options.json)


class Runs:
    """Runs of the product on one log, each made once: a trial of seed 0 that is chosen is also a row."""

    def __init__(self, dataset: str, folder: Path):
        self.dataset, self.folder = dataset, folder
        self._made: dict[tuple[str, Overrides, int], tuple[Config, RunFolder]] = {}

    def get(self, column: str, tried: Overrides, seed: int) -> tuple[Config, RunFolder]:
        key = column, tried, seed
        if key not in self._made:
            self._made[key] = simulated(
                self.dataset, overrides(column, tried, seed), self.folder, self._cloud(column, seed)
            )
        return self._made[key]

    def valid_ndcg(self, column: str, tried: Overrides) -> float:
        _, run = self.get(column, tried, 0)
        evaluation = [record for record in run.records("evaluation") if record["part"] == "valid"][-1]
        return evaluation["tables"][JUDGED_BY[column]]["all"][f"NDCG@{K}"]

    def _cloud(self, column: str, seed: int) -> RunFolder | None:
        """Another run with the same stale cloud, which need not be trained again."""
        same = [run for (other, _, its), (_, run) in self._made.items() if other != ORACLE and its == seed]
        return same[0] if same and column != ORACLE else None


def study(runs: Runs, seed: int, tuning: Path) -> list[Row]:
    """One row a column."""
    settings = {
        name: chosen(runs.dataset, name, tuning, partial(runs.valid_ndcg, name)) for name in TRIALS_OF[runs.dataset]
    }
    ours, _ = runs.get(OURS, settings[OURS], seed)
    rows = []
    for column, (name, variant) in COLUMNS.items():
        made = runs.get(name, settings[name], seed)
        rows.append({**row(runs.dataset, column, seed, *made, variant, ours), "tried": list(settings[name])})
    return rows


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
    dataset: str, column: str, seed: int, config: Config, run: RunFolder, variant: str, stale_config: Config
) -> Row:
    """HR and NDCG at 10 of one variant on the study's test users, by group, and the bytes that a round sent up."""
    stale = load_split(stale_config.data, stale_config.split)
    arrays = run.read_arrays(EVALUATION)
    late = stale.test.users_H[after_cut(load_log(stale_config.data), stale)]
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
    per_user = np.round(metrics[f"NDCG@{K}"][np.argsort(ids_H)], 4).tolist() if column in PER_USER else []
    return {
        "dataset": dataset,
        "column": column,
        "seed": seed,
        "protocol": "loo-full, test clicks after the cut",
        "scores": scores,
        "bytes_up_per_user_per_round": sent,
        "model_bytes": device["model_bytes"],
        "patch_parameters": device["patch_parameters"],
        "ndcg_by_user": per_user,
    }


def headline(rows: list[Row]) -> dict[str, float]:
    """Means over seeds first, then ratios; the gap is that of NDCG@10 over all test users."""
    figures = {}
    for dataset, name in (("ml-100k", "gap_closed_ml100k"), ("bazaar", "gap_closed_bazaar")):
        if any(row["dataset"] == dataset for row in rows):
            figures[name] = gap_closed(rows, dataset)
    ours = [row for row in rows if row["column"] == PERSONAL]
    figures["bytes_share"] = max(row["bytes_up_per_user_per_round"] / row["model_bytes"] for row in ours)
    real = "ml-100k" if any(row["dataset"] == "ml-100k" for row in rows) else "bazaar"
    for group in ("tail", "head"):
        figures[f"gain_{group}"] = mean(rows, real, PERSONAL, group) - mean(rows, real, BASE, group)
    return figures


def gap_closed(rows: list[Row], dataset: str, column: str = PERSONAL) -> float:
    base, oracle = mean(rows, dataset, BASE, "all"), mean(rows, dataset, ORACLE, "all")
    if oracle <= base:
        raise RunError(f"freshness {dataset}: the oracle ({oracle:.4f}) is no better than {base:.4f}: there is no gap")
    return (mean(rows, dataset, column, "all") - base) / (oracle - base)


def mean(rows: list[Row], dataset: str, column: str, group: str, metric: str = f"NDCG@{K}") -> float:
    """Over seeds."""
    found = [r["scores"][group][metric] for r in rows if (r["dataset"], r["column"]) == (dataset, column)]
    return float(np.mean(found))


if __name__ == "__main__":
    main()
