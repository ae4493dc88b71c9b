"""Peers in one harness: ``python -m experiments.peers.run``. Writes ``tuning.json``, ``results.json`` and the README.

Hyper-parameters are chosen first, with seed 0, on validation clicks only: ``tuning.json`` holds every trial and no test
score. What it already holds is not tried again, so a run with a subset of peers costs that subset.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from experiments import results
from experiments.peers import evaluation, readme
from experiments.peers.interface import Scores
from experiments.peers.table import PEERS, Hyper, Peer
from experiments.results import ROOT, Row, names_among
from fedquilt.config import DataConfig, SplitConfig
from fedquilt.graphs.datasets import load_log
from fedquilt.graphs.splits import Split, split_log
from server.evaluate import candidate_rule

HERE = Path(__file__).parent
PROTOCOLS = {
    "loo99-strict": "loo99",
    "loo-full": "loo-full",
}  # negatives are strict everywhere; loo99 says so in its name
HEADLINE = {
    "hr10_strict_lightgcn": ("lightgcn", "HR@10"),
    "hr10_strict_ease": ("ease", "HR@10"),
    "hr10_strict_sasrec": ("sasrec", "HR@10"),
    "hr10_strict_pfedrec": ("pfedrec", "HR@10"),
    "hr10_strict_warm": ("fedquilt-warm", "HR@10"),
    "ndcg10_strict_warm": ("fedquilt-warm", "NDCG@10"),
    "hr10_strict_pure": ("fedquilt-pure", "HR@10"),
    "ndcg10_strict_pure": ("fedquilt-pure", "NDCG@10"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    tuning = options.json.with_name("tuning.json")
    if not options.readme:
        torch.set_num_threads(1)
        splits = load_splits(options.data, options.protocols)
        for name in options.peers:
            study(name, splits, options.seeds, options.json, tuning)
    readme.update(HERE / "README.md", options.json, tuning)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m experiments.peers.run", description=__doc__)
    parser.add_argument("--peers", type=names_among(PEERS), default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument("--protocols", type=names_among(PROTOCOLS), default=list(PROTOCOLS), help=", ".join(PROTOCOLS))
    parser.add_argument("--seeds", type=lambda text: [int(seed) for seed in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data/ml-100k", help="the ml-100k folder")
    parser.add_argument("--json", type=Path, default=HERE / "results.json", help="tuning.json lies beside it")
    parser.add_argument("--readme", action="store_true", help="only make the README's tables from results.json")
    return parser.parse_args(arguments)


def load_splits(data: Path, protocols: Sequence[str]) -> dict[str, Split]:
    """The whole training part is the cloud's: centralised peers see all of it."""
    log = load_log(DataConfig(dataset="ml-100k", path=str(data)))
    splits = {name: split_log(log, SplitConfig(protocol=PROTOCOLS[name], cloud_share=1.0)) for name in protocols}
    for split in splits.values():
        evaluation.require_honest(split)
    return splits


def study(name: str, splits: Mapping[str, Split], seeds: Sequence[int], path: Path, tuning: Path) -> None:
    """Tune one peer, then fit it with every seed; each result is on disk before the next fit begins."""
    peer = PEERS[name]
    for hyper, protocols in grouped(choose(name, peer, splits, tuning)):
        for seed in seeds[:1] if peer.deterministic else seeds:
            chosen = {protocol: splits[protocol] for protocol in protocols}
            fits = measure(peer, chosen, seed, hyper)
            rows = [result_row(name, protocol, split, seed, *fits[protocol]) for protocol, split in chosen.items()]
            results.write_results(path, rows, headline)
            for row in rows:
                say(
                    name,
                    row["protocol"],
                    f"seed {seed}  test {short(row['test'])}  epoch {row['epoch']}",
                    row["seconds"],
                )


def choose(name: str, peer: Peer, splits: Mapping[str, Split], tuning: Path) -> dict[str, Hyper]:
    """For each protocol the best of the peer's grid on validation clicks, first come first among equals."""
    if len(peer.grid) == 1:
        return {protocol: dict(peer.grid[0]) for protocol in splits}
    known: list[Row] = results.read_results(tuning)["rows"] if tuning.exists() else []
    trials = [row for row in known if row["model"] == name and row["protocol"] in splits]
    for hyper in peer.grid:
        missing = {p: s for p, s in splits.items() if not any(is_trial(row, p, s, hyper) for row in trials)}
        if missing:
            fits = measure(peer, missing, 0, hyper)
            new = [{"model": name, "protocol": p, "split": s.hash, **fits[p][1]} for p, s in missing.items()]
            results.write_results(tuning, new, lambda rows: {}, key=("model", "protocol", "hyper"))
            trials += new
            for row in new:
                say(
                    name,
                    row["protocol"],
                    f"{hyper}  validation {short(row['valid'])}  epoch {row['epoch']}",
                    row["seconds"],
                )
    return {p: best_trial([r for r in trials if r["protocol"] == p], peer.grid) for p in splits}


def is_trial(row: Row, protocol: str, split: Split, hyper: Hyper) -> bool:
    return (row["protocol"], row["split"], row["hyper"]) == (protocol, split.hash, hyper)


def best_trial(trials: Sequence[Row], grid: Sequence[Hyper]) -> Hyper:
    offered = [row for row in trials if row["hyper"] in grid]
    best: Row = max(offered, key=lambda row: sum(row["valid"][metric] for metric in evaluation.SELECTION))
    return best["hyper"]


def grouped(chosen: Mapping[str, Hyper]) -> list[tuple[Hyper, list[str]]]:
    """Protocols that chose the same hyper-parameters share their fits."""
    groups: list[tuple[Hyper, list[str]]] = []
    for protocol, hyper in chosen.items():
        same = [protocols for other, protocols in groups if other == hyper]
        same[0].append(protocol) if same else groups.append((hyper, [protocol]))
    return groups


def measure(peer: Peer, splits: Mapping[str, Split], seed: int, hyper: Hyper) -> dict[str, tuple[Scores, Row]]:
    """One fit, and for each protocol its best epoch's scores: on validation clicks; test clicks are not looked at.

    ``seconds`` are processor seconds of the whole fit, which the protocols share.
    """
    judge = evaluation.Judge(splits)
    train = next(iter(splits.values())).train
    started = time.process_time()
    judge(peer.fit(train, judge, seed, **hyper))
    seconds = round(time.process_time() - started, 1)
    fits: dict[str, tuple[Scores, Row]] = {}
    for protocol, split in splits.items():
        scores = judge.best[protocol]
        valid = means(evaluation.per_user(scores, split, "valid", (10,)))
        epoch = getattr(scores, "epoch", 0)
        fits[protocol] = scores, {"hyper": dict(hyper), "epoch": epoch, "seconds": seconds, "valid": valid}
    return fits


def result_row(name: str, protocol: str, split: Split, seed: int, scores: Scores, row: Row) -> Row:
    test = means(evaluation.per_user(scores, split, "test"))
    asked = {"split": split.hash, "candidates": candidate_rule(split.protocol)}
    return {"model": name, "protocol": protocol, "seed": seed, **row, **asked, "test": test}


def headline(rows: list[Row]) -> dict[str, float]:
    """Means over seeds under loo99-strict, of the models that have been measured."""
    found = {}
    for name, (model, metric) in HEADLINE.items():
        values = [row["test"][metric] for row in rows if (row["model"], row["protocol"]) == (model, "loo99-strict")]
        if values:
            found[name] = round(float(np.mean(values)), 4)
    return found


def means(per_user: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Recall is left out: with one held-out click a user it is HR."""
    return {name: round(float(values.mean()), 5) for name, values in per_user.items() if not name.startswith("Recall")}


def short(values: Mapping[str, float]) -> str:
    return f"{values['HR@10']:.4f} / {values['NDCG@10']:.4f}"


def say(name: str, protocol: str, text: str, seconds: float) -> None:
    print(f"{name:17} {protocol:13} {text}, {seconds} s", flush=True)


if __name__ == "__main__":
    main()
