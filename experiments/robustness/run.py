"""Attacks × rules × fractions on ml-100k and the bazaar. ``python -m experiments.robustness.run --help``.

Every row is one simulation (``cli.attack_world.run_attack``): honest NDCG@10 of all and of tail users, exposure of the
targets as a trajectory, backdoor and evasion success, rejections, seconds a round. Rows that ``results.json`` holds
already are not run again unless ``--again`` says so.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from cli.attack_options import NONE, attacked_config, load_config
from cli.attack_world import run_attack
from experiments.results import ROOT, Row, read_results, write_results
from experiments.robustness.headline import headline

HERE = Path(__file__).parent
DATASETS = {"ml-100k": "ml100k.toml", "bazaar": "bazaar.toml"}
FRACTIONS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3)
KEY = ("dataset", "attack", "options", "rule", "malicious", "targets", "seed")
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {  # name on the command line: attack and its options
    "sign-flip": ("sign-flip", {}),
    "gaussian": ("gaussian", {}),
    "alie": ("alie", {}),
    "ipm": ("ipm", {}),
    "ipm-small": ("ipm", {"epsilon": 0.5}),
    "min-max": ("min-max", {}),
    "min-sum": ("min-sum", {}),
    "mimic": ("mimic", {}),
    "model-replacement": ("model-replacement", {}),
    "sybil": ("sybil", {}),
    "sybil-jitter": ("sybil", {"jitter": 1.0}),
    "not-finite": ("not-finite", {}),
    "malformed": ("malformed", {}),
    "adaptive": ("adaptive", {}),
    "adaptive-promotion": ("adaptive", {"inner": "fed-rec-attack"}),
    "adaptive-backdoor": ("adaptive", {"inner": "backdoor"}),
    "label-flip": ("label-flip", {}),
    "random-profile": ("random-profile", {}),
    "average-profile": ("average-profile", {}),
    "bandwagon": ("bandwagon", {}),
    "average-over-popular": ("average-over-popular", {}),
    "fake-co-clicks": ("fake-co-clicks", {}),
    "rival-demotion": ("rival-demotion", {}),
    "graph-poisoning": ("graph-poisoning", {}),
    "fed-rec-attack": ("fed-rec-attack", {}),
    "pip-attack": ("pip-attack", {}),
    "pip-attack-hidden": ("pip-attack", {"hidden": True}),
    "pieck-ipe": ("pieck", {"variant": "ipe"}),
    "pieck-uea": ("pieck", {"variant": "uea"}),
    "ua-fed-rec": ("ua-fed-rec", {}),
    "backdoor": ("backdoor", {}),
    "backdoor-distributed": ("backdoor", {"parts": 4}),
    "evasion-greedy": ("evasion-clicks", {}),
    "evasion-gradient": ("evasion-clicks", {"search": "gradient"}),
    "evasion-random": ("evasion-clicks", {"search": "random"}),
    "evasion-popular": ("evasion-clicks", {"search": "popular"}),
    "evasion-edges": ("evasion-edges", {}),
    NONE: (NONE, {}),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.robustness.run", description=__doc__)
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--attacks", default=",".join(ATTACKS), help="names of ATTACKS in this file")
    parser.add_argument("--rules", default="mean", help="aggregators, comma-separated")
    parser.add_argument("--fractions", default="0.2", help=f"of {FRACTIONS}; a clean run is attack {NONE}")
    parser.add_argument("--targets", default="head,tail")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--tolerate", type=float, default=0.2, help="share that a rule is told to withstand")
    parser.add_argument("--judged", default="", help="rule that the headline is about")
    parser.add_argument("--set", action="append", default=[], help="override of the configuration, for a trial")
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    parser.add_argument("--again", action="store_true", help="also run what the file holds already")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    held = {} if options.again or not options.json.exists() else _by_key(read_results(options.json)["rows"])
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells(options):
            if _key(cell) not in held:
                row = _run(cell, options, Path(folder))
                write_results(options.json, [row], lambda rows: headline(rows, options.judged), key=KEY)


def cells(options: argparse.Namespace) -> Iterable[Row]:
    """Seed by seed, clean runs first."""
    names = sorted(options.attacks.split(","), key=lambda name: name != NONE)
    for seed in map(int, options.seeds.split(",")):
        for dataset in options.datasets.split(","):
            for rule in options.rules.split(","):
                for name in names:
                    attack, its = ATTACKS[name]
                    for share in map(float, options.fractions.split(",")):
                        for targets in options.targets.split(","):
                            yield dict(zip(KEY, (dataset, attack, its, rule, share, targets, seed), strict=True))


def _run(cell: Row, options: argparse.Namespace, folder: Path) -> Row:
    loaded = load_config(
        HERE / "configs" / DATASETS[cell["dataset"]], [f"attack.targets={cell['targets']}", *options.set]
    )
    if loaded.data.path:
        path = str((ROOT / ".." / "shared" / "data" / cell["dataset"]).resolve())
        loaded = loaded.model_copy(update={"data": loaded.data.model_copy(update={"path": path})})
    made = attacked_config(
        loaded, cell["attack"], cell["rule"], cell["malicious"], cell["seed"], options.tolerate, cell["options"], {}
    )
    row = run_attack(made, folder / "runs", folder / "clouds")
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return {**row, **cell}


def _key(row: Row) -> str:
    return repr([row.get(name) for name in KEY])


def _by_key(rows: Iterable[Row]) -> dict[str, Row]:
    return {_key(row): row for row in rows}


if __name__ == "__main__":
    main()
