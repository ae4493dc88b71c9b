"""fedquilt in the peers' table: ``python -m experiments.peers.fedquilt_settings``.

- *pure*: no click leaves a device, the cloud starts from item features; what travels is a patch.
- *warm*: the cloud has the training clicks; devices add patches.

Each is one run of the product (``server.simulate``), judged by the same yardstick as the peers. The whole patch after
the last round is used, no epoch is chosen; hyper-parameters are those of ``experiments/configs``, chosen on
validation clicks.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
import torch

from client.app import app as client_app
from client.recommend import make_task
from client.store import PersonalStore
from experiments.peers import evaluation, readme
from experiments.peers.run import HERE, headline, load_splits, means
from experiments.results import ROOT, Row, write_results
from fedquilt.config import Config, load
from fedquilt.graphs.splits import Split
from fedquilt.runs import RunFolder
from server.evaluate import Part, candidate_rule
from server.simulate import prepare, simulate

SETTINGS = {"fedquilt-pure": "pure-ml100k.toml", "fedquilt-warm": "warm-ml100k.toml"}
VARIANTS = {"base": ", base model", "global": ", federated patch", "personal": ""}
PARTS: tuple[tuple[Part, tuple[int, ...]], ...] = (("valid", (10,)), ("test", (5, 10, 20)))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.peers.fedquilt_settings", description=__doc__)
    parser.add_argument("--settings", default=",".join(SETTINGS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], help="key=value: a trial on validation clicks")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path, tuning = HERE / "results.json", HERE / "tuning.json"
    splits = load_splits(ROOT / "../shared/data/ml-100k", ["loo99-strict", "loo-full"])
    for setting in options.settings.split(","):
        for seed in map(int, options.seeds.split(",")):
            for row in measured(setting, seed, options.set, splits):
                print(row["model"], row["protocol"], seed, row["valid"], flush=True)
                if options.set:  # a trial: what it scored on test clicks is not looked at
                    trial = {name: row[name] for name in ("model", "protocol", "seed", "hyper", "seconds", "valid")}
                    write_results(tuning, [trial], lambda rows: {}, key=("model", "protocol", "hyper"))
                else:
                    write_results(path, [row], headline)
    if not options.set:
        readme.update(HERE / "README.md", path, tuning)


def measured(setting: str, seed: int, overrides: Sequence[str], splits: Mapping[str, Split]) -> Iterator[Row]:
    """One run; a row for each variant and protocol. The protocols share their training clicks."""
    config = load(ROOT / "experiments" / "configs" / SETTINGS[setting], [f"seed={seed}", *overrides])
    path = str((ROOT / config.data.path).resolve())
    config = config.model_copy(update={"data": config.data.model_copy(update={"path": path})})
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.create(folder, config)
        simulate(config, run, client_app)
        seconds = round(time.process_time() - started, 1)
        scores = final_scores(config, run)
    for variant, label in VARIANTS.items():
        of_users = partial(np.take, scores[variant], axis=0)
        for protocol, split in splits.items():
            valid, test = (means(evaluation.per_user(of_users, split, part, ks)) for part, ks in PARTS)
            yield {
                "model": f"{setting}{label}",
                "protocol": protocol,
                "seed": seed,
                "hyper": {"configuration": SETTINGS[setting], **dict(text.split("=", 1) for text in overrides)},
                "epoch": config.federation.rounds,
                "seconds": seconds,
                "valid": valid,
                "split": split.hash,
                "candidates": candidate_rule(split.protocol),
                "test": test,
            }


def final_scores(config: Config, run: RunFolder) -> dict[str, np.ndarray]:
    """Every user's scores of every item [U, I], by variant, from what the finished run left behind."""
    task = make_task(config, 0, 1)
    task.install(prepare(config, run).base)
    patch_P = run.read_arrays("patch.npz")["patch_P"]
    ids_U = task.client_ids_U
    personal_UR = np.zeros((len(ids_U), task.personal_size), np.float32)
    nodes = config.federation.num_supernodes
    for partition in range(nodes):
        store = PersonalStore(run.devices, partition, task.spec.hash, task.personal_size)
        mine = ids_U % nodes == partition
        personal_UR[mine] = store.read(ids_U[mine], before_round=config.federation.rounds + 1)
    scores = {name: np.zeros((task.split.train.num_users, task.split.train.num_items), np.float32) for name in VARIANTS}
    for rows in np.array_split(np.arange(len(ids_U)), max(len(ids_U) // 64, 1)):
        for name, scores_KI in task.scores(ids_U[rows], patch_P, personal_UR[rows]):
            if name in scores:
                scores[name][ids_U[rows]] = scores_KI.numpy()
    return scores


if __name__ == "__main__":
    main()
