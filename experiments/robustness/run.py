"""Attacks × rules × fractions on logs. ``python -m experiments.robustness.run --help``.

Every row is one simulation (``cli.attack_world.run_attack``): honest NDCG@10 of all and of tail users, exposure of the
targets as a trajectory, backdoor and evasion success, rejections, seconds a round. Rows that ``results.json`` holds
already are not run again unless ``--again`` says so. Trained clouds are kept on disk, one for each configuration, seed
and state of the code that trains them. Writes ``results.json`` and the README's tables.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from cli.attack_options import NONE, attacked_config, clean_options, load_config
from cli.attack_world import run_attack
from client.attacks.contract import make_attack
from experiments.results import ROOT, Row, read_results, write_results
from experiments.robustness import readme
from experiments.robustness.headline import headline

HERE = Path(__file__).parent
DATASETS = {"bazaar-small": "bazaar_small.toml", "bazaar": "bazaar.toml", "ml-100k": "ml100k.toml"}
CLOUDS = ROOT / "runs" / "robustness-clouds"
TRAINS_THE_CLOUD = ("models", "fedquilt/graphs", "server/cloud.py")
FRACTIONS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.3)
KEY = ("dataset", "attack", "options", "rule", "malicious", "targets", "seed", "tolerate", "set")
LOUD = {"inner": "backdoor", "options": {"stealth": -0.5}}  # shows the target without the trigger as well
ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {  # name on the command line: attack and its options
    "sign-flip": ("sign-flip", {}),
    "sign-flip-spared": ("sign-flip", {"spare": ["item_bias"]}),
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
    "adaptive-spared": ("adaptive", {"spare": ["item_bias"]}),
    "adaptive-promotion": ("adaptive", {"inner": "fed-rec-attack"}),
    "adaptive-backdoor": ("adaptive", {"inner": "backdoor"}),
    "camouflage-promotion": ("camouflage", {}),
    "camouflage-backdoor": ("camouflage", {"inner": "backdoor"}),
    "camouflage-backdoor-loud": ("camouflage", LOUD),
    "camouflage-quiet": ("camouflage", {"quiet": True}),
    "camouflage-quiet-backdoor": ("camouflage", {"inner": "backdoor", "options": {"stealth": 0.0}, "quiet": True}),
    "framing": ("framing", {}),
    "framing-hard": ("framing", {"items": 4, "strength": 0.5}),
    "camouflage-loud-crews": ("camouflage", {**LOUD, "crews": [1.0, 0.6, 0.4, 0.2]}),
    "camouflage-ipm": ("camouflage", {"inner": "ipm"}),
    "camouflage-crews": ("camouflage", {"crews": [1.0, 0.6, 0.4, 0.2]}),
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
    "undercut": ("undercut", {}),
    "camouflage-undercut": ("camouflage", {"inner": "undercut"}),
    "ua-fed-rec": ("ua-fed-rec", {}),
    "backdoor": ("backdoor", {}),
    "backdoor-distributed": ("backdoor", {"parts": 4}),
    "mimic-crowds": ("mimic", {"group": 9, "victims": "tail"}),
    "evasion-greedy": ("evasion-clicks", {}),
    "evasion-gradient": ("evasion-clicks", {"search": "gradient"}),
    "evasion-random": ("evasion-clicks", {"search": "random"}),
    "evasion-popular": ("evasion-clicks", {"search": "popular"}),
    "evasion-edges": ("evasion-edges", {}),
    NONE: (NONE, {}),
}
SPECTRAL = 'federation.pre_rules=["frozen-parts", "spectral-clipping"]'
FROZEN = 'federation.pre_rules=["collusion-screening", "frozen-parts", "spectral-clipping"]'
SUPPORTED = (
    'federation.pre_rules=["support-screening", "collusion-screening", "spectral-clipping"]',
    'federation.pre_rule_options={"spectral-clipping"={bound=3.0}}',
)
SKEWED = (
    'federation.pre_rules=["skew-screening", "collusion-screening", "spectral-clipping"]',
    'federation.pre_rule_options={"spectral-clipping"={bound=3.0}}',
)
BY_PART = 'server_optimizer.name="adam-by-part"'
LIFT = "defence.lift_quantile=0.95"
PANEL = "defence.panel_users=100"
CEILING = "defence.exposure_share=0.01"
PIPELINES: dict[str, tuple[str, tuple[str, ...]]] = {  # name on the command line: aggregator and what it comes with
    "guarded": ("mean", (*SKEWED, BY_PART, LIFT, PANEL)),  # the default under attack: docs/defences.md
    "no-panel": ("mean", (*SUPPORTED, BY_PART, LIFT)),  # the default where the cloud has no panel
    "supported": ("mean", (*SUPPORTED, BY_PART)),  # without the ceiling on lift
    "mean-by-part": ("mean", (BY_PART,)),
    "frozen": ("mean", (FROZEN,)),  # the default before
    "frozen-ceiling": ("mean", (FROZEN, CEILING)),
    "spectral": ("mean", (SPECTRAL,)),
    "spectral-ceiling": ("mean", (SPECTRAL, CEILING)),
    "mixed-trimmed-mean": ("trimmed-mean", ('federation.pre_rules=["nearest-neighbour-mixing"]',)),
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.robustness.run", description=__doc__)
    parser.add_argument("--datasets", default=",".join(DATASETS))
    parser.add_argument("--attacks", default=",".join(ATTACKS), help="names of ATTACKS in this file")
    parser.add_argument("--rules", default="mean", help=f"aggregators, or of {', '.join(PIPELINES)}")
    parser.add_argument("--fractions", default="0.2", help=f"of {FRACTIONS}; a clean run is attack {NONE}")
    parser.add_argument("--targets", default="tail", help="head, tail; attacks without a target run with the first")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--tolerate", type=float, default=0.3, help="share of a round that a rule is told to withstand")
    parser.add_argument("--judged", default="guarded", help="rule that the headline is about")
    parser.add_argument("--clouds", type=Path, default=CLOUDS, help="folder that keeps trained clouds")
    parser.add_argument("--readme", action="store_true", help="only make the README's tables again")
    parser.add_argument("--set", action="append", default=[], help="override of the configuration, for a trial")
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    parser.add_argument("--again", action="store_true", help="also run what the file holds already")
    options = parser.parse_args(arguments)
    if options.readme:
        return readme.update(HERE / "README.md", options.json)
    torch.set_num_threads(1)
    held = {} if options.again or not options.json.exists() else _by_key(read_results(options.json)["rows"])
    with tempfile.TemporaryDirectory() as folder:
        for cell in cells(options):
            if _key(cell) not in held:
                row = _run(cell, options, Path(folder))
                write_results(options.json, [row], lambda rows: headline(rows, options.judged), key=KEY)
                print(f"{cell['attack']:>14} {cell['rule']:<18} {row['seconds']:.0f} s", flush=True)
    if options.json.parent == HERE:
        readme.update(HERE / "README.md", options.json)


def cells(options: argparse.Namespace) -> Iterable[Row]:
    """Seed by seed, clean runs first, then attack by attack under every rule: what is stopped can be compared."""
    targets = options.targets.split(",")
    protocol = (options.tolerate, list(options.set))
    for seed in map(int, options.seeds.split(",")):
        for dataset in options.datasets.split(","):
            for attack, its in with_clean(options.attacks.split(",")):
                for rule in options.rules.split(","):
                    for share in map(float, options.fractions.split(",")):
                        for wanted in targets if aimed(attack, its) else targets[:1]:
                            cell = (dataset, attack, its, rule, share, wanted, seed, *protocol)
                            yield dict(zip(KEY, cell, strict=True))


def with_clean(names: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Attacks and their options, clean runs first; with the clean run of one that takes other users than usual."""
    asked = [ATTACKS[name] for name in sorted(names, key=lambda name: name != NONE)]
    special = [(NONE, own) for attack, its in asked if (own := clean_options(attack, its))]
    return [*special, *asked]


def aimed(attack: str, options: dict[str, Any]) -> bool:
    """Whether the choice of a target matters; for a clean run it does, as the exposure to compare with."""
    return attack == NONE or make_attack(attack, options).goal != "untargeted"


def sources_hash() -> str:
    """Of the code that trains a cloud: one trained by other code is not taken for it."""
    files = sorted(file for name in TRAINS_THE_CLOUD for file in _python_files(ROOT / name))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def _python_files(path: Path) -> list[Path]:
    return [path] if path.is_file() else list(path.rglob("*.py"))


def _run(cell: Row, options: argparse.Namespace, folder: Path) -> Row:
    rule, its = PIPELINES.get(cell["rule"], (cell["rule"], ()))
    loaded = load_config(
        HERE / "configs" / DATASETS[cell["dataset"]], [f"attack.targets={cell['targets']}", *its, *options.set]
    )
    if loaded.data.path:
        path = str((ROOT / ".." / "shared" / "data" / cell["dataset"]).resolve())
        loaded = loaded.model_copy(update={"data": loaded.data.model_copy(update={"path": path})})
    made = attacked_config(
        loaded, cell["attack"], rule, cell["malicious"], cell["seed"], options.tolerate, cell["options"], {}
    )
    row = run_attack(made, folder / "runs", options.clouds / sources_hash())
    shutil.rmtree(folder / "runs", ignore_errors=True)
    return {**row, **cell}


def _key(row: Row) -> str:
    return repr([row.get(name) for name in KEY])


def _by_key(rows: Iterable[Row]) -> dict[str, Row]:
    return {_key(row): row for row in rows}


if __name__ == "__main__":
    main()
