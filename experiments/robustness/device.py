"""Defences on the device, on a small bazaar: ``python -m experiments.robustness.device --help``.

Parts: ``screening``, evasion success against the attackers that know the screen, and clean NDCG@10, by its settings;
``scan``, whether the trigger scan suspects the backdoor's target, and what it suspects in clean runs; ``vote``,
certified HR@10 and the abstain rate by inserted clicks. One row a simulation; rows that ``device.json`` holds already
are kept.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from cli.attack_options import NONE, attacked_config
from cli.attack_world import run_attack
from cli.certify_run import certified_table
from cli.run_patch import base_and_patch
from cli.scan import scan_patch
from experiments.results import Row, names_among, read_results, write_results
from fedquilt.config import Config, parse
from fedquilt.graphs.datasets import load_split
from fedquilt.runs import RunFolder

RESULTS = Path(__file__).parent / "device.json"
KEY = ("part", "setting", "attack", "seed")
SCREENS: dict[str, dict[str, float]] = {
    "off": {},
    "edges .3": {"similarity": 0.3},
    "degree 4": {"degree": 4},
    "clicks .3 .2": {"similarity": 0.3, "support": 0.2},
    "clicks .5 .3": {"similarity": 0.5, "support": 0.3},
}
VOTES = {"4 groups": (4, 20), "8 groups": (8, 20), "16 groups": (16, 20)}


def small(seed: int, **sections: Any) -> Config:
    """300 users, 200 items, a cloud that has seen all training clicks, 10 rounds of 60 users."""
    given: dict[str, Any] = {
        "name": "device",
        "seed": seed,
        "data": {"num_users": 300, "num_items": 200, "mean_clicks": 25},
        "split": {"cloud_share": 1.0},
        "graph": {"num_nodes": 24, "num_clicked": 16, "top_neighbours": 10, "num_walks": 16},
        "cloud": {"dim": 16, "hidden": 32, "epochs": 30},
        "patch": {"parts": ["bottleneck", "item-bias", "item-low-rank"], "item_rank": 4},
        "federation": {"rounds": 10, "cohort_size": 60, "num_supernodes": 2, "evaluate_every": 0},
    }
    return parse({**given, **sections})


def attacked(config: Config, attack: str, options: dict[str, Any]) -> Config:
    return attacked_config(config, attack, "mean", 0.2, config.seed, 0.0, options, {})


def screening(seed: int, folder: Path, done: set[tuple[Any, ...]]) -> Iterator[Row]:
    for setting, screen in SCREENS.items():
        for attack in ("evasion-clicks", "evasion-edges"):
            if ("screening", setting, attack, seed) in done:
                continue
            config = attacked(small(seed, screening=screen), attack, {"search": "gradient", "budget": 3})
            row = run_attack(config, folder, folder / "clouds")
            ndcg = {variant: row["test"][variant]["NDCG@10"] for variant in ("base", "global", "personal")}
            success = {"success": row["evasion"]["success"], "users": row["evasion"]["users"]}
            yield {"part": "screening", "setting": setting, "attack": attack, "seed": seed, **success, "NDCG@10": ndcg}


def scan(seed: int, folder: Path, done: set[tuple[Any, ...]]) -> Iterator[Row]:
    for attack in ("backdoor", NONE):
        if ("scan", "", attack, seed) in done:
            continue
        row = run_attack(attacked(small(seed), attack, {}), folder, folder / "clouds")
        run = RunFolder.open(folder / row["run"])
        popularity_I = load_split(run.config.data, run.config.split).cloud.popularity_I
        found = scan_patch(run.config, *base_and_patch(run), popularity_I)
        about = {"target_found": row.get("scan", {}).get("found"), "backdoor": row.get("backdoor", {}).get("global")}
        yield {"part": "scan", "setting": "", "attack": attack, "seed": seed, **about, **found}


def vote(seed: int, folder: Path, done: set[tuple[Any, ...]]) -> Iterator[Row]:
    wanted = {name: vote for name, vote in VOTES.items() if ("vote", name, NONE, seed) not in done}
    if not wanted:
        return
    row = run_attack(attacked(small(seed), NONE, {}), folder, folder / "clouds")
    run = RunFolder.open(folder / row["run"])
    for setting, (groups, ballot) in wanted.items():
        table = certified_table(run, groups, ballot, 5, 300)
        yield {"part": "vote", "setting": setting, "attack": NONE, "seed": seed, **table}


PARTS = {"screening": screening, "scan": scan, "vote": vote}


def headline(rows: list[Row]) -> dict[str, float]:
    """Shares over seeds of the scan; of the others the rows are to be read."""
    found = [row["target_found"] for row in rows if row["part"] == "scan" and row["attack"] != NONE]
    false = [bool(row["suspects"]) for row in rows if row["part"] == "scan" and row["attack"] == NONE]
    shares = {"trigger_found": found, "trigger_false_alarms": false}
    return {name: sum(values) / len(values) for name, values in shares.items() if values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=names_among(PARTS), default=list(PARTS), help="separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="run what is there already, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    held = [] if given.again or not RESULTS.exists() else read_results(RESULTS)["rows"]
    done = {tuple(row[name] for name in KEY) for row in held}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(given.seeds):
            for part in given.parts:
                for row in PARTS[part](seed, Path(folder), done):
                    print({name: row[name] for name in KEY}, flush=True)
                    write_results(RESULTS, [row], headline, KEY)


if __name__ == "__main__":
    main()
