"""What privacy costs in quality: the gain over the stale cloud that is kept, by epsilon, users, mode and patch.

    python -m experiments.privacy.run                          # every part, about two hours on one core
    python -m experiments.privacy.run --parts users-100k       # one part; rows that are there are not measured again
    python -m experiments.privacy.run --readme                 # headline and README from the rows alone

A row is one federation (``world.federated``) judged by the same users, whatever the number of users (``world.World``).
Headline figures of ``audit.json`` and ``graph.json`` stand beside those of the rows.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch

from experiments.privacy import cost, readme
from experiments.privacy.kept import gain_kept, kept_of_best, packed
from experiments.privacy.world import World, config_of, federated
from experiments.results import Row, names_among, read_results, write_results

HERE = Path(__file__).parent
OUT = HERE / "results.json"
CLOUDS = Path(tempfile.gettempdir()) / "fedquilt-privacy-clouds"
KEY = ("study", "dataset", "users", "mode", "patch", "epsilon", "seed")
EPSILONS = (None, 8.0, 4.0, 2.0, 1.0, 0.5)  # None: no privacy, the reference of the rows with the same users and patch

TINY, PATCH, PLAIN, FULL = "without item vectors", "patch", "patch, plain Adam", "full model"
MORE = "patch, plain Adam, more users a round"
HALF, PLAIN_HALF = "patch, half of the users a round", "patch, plain Adam, half of the users a round"
_PLAIN_ADAM = (  # what gains more without noise
    "server_optimizer.options.tau=1e-8",
    "server_optimizer.learning_rate=0.02",
    "federation.rounds=30",
)
_HALF = ("federation.cohort_size=50000",)  # of 100,000: signal beside noise, q √T / z, is 1.7 times as large
PATCHES: dict[str, tuple[str, ...]] = {
    PATCH: (),
    PLAIN: (*_PLAIN_ADAM, "federation.cohort_size=5000"),
    MORE: _PLAIN_ADAM,  # at the same epsilon the noise on a mean falls with the users in it
    HALF: (*_HALF, "server_optimizer.options.tau=1.2e-4"),  # as many times the noise on a coordinate as in PATCH
    PLAIN_HALF: (*_HALF, *_PLAIN_ADAM),
    TINY: ('patch.parts=["bottleneck", "item-bias"]',),
    FULL: (
        'patch.parts=["convolution", "readout", "item-bias", "item-low-rank"]',
        "patch.item_rank=32",  # as wide as item vectors are: every item's vector moves freely
        'meta.inner_parts=["readout"]',
    ),
}
COHORTS = {6_040: 3_000, 10_000: 4_000, 100_000: 10_000, 1_000_000: 10_000}  # users a round, by users
MODES = {
    "none": (),
    "central": ("privacy.mode=central",),
    "local": ("privacy.mode=local", "privacy.sampler=fixed-order"),
    "distributed": ("privacy.mode=distributed", "privacy.sampler=fixed-order"),
    "dp-ftrl": ("privacy.mode=dp-ftrl", "privacy.sampler=fixed-order"),
}


@dataclass(frozen=True)
class Cell:
    """One row of the study; ``epsilon`` None belongs to mode "none"."""

    dataset: str
    users: int
    mode: str
    patch: str
    epsilon: float | None
    seed: int

    @property
    def overrides(self) -> tuple[str, ...]:
        target = () if self.epsilon is None else (f"privacy.epsilon={self.epsilon}",)
        cohort = f"federation.cohort_size={COHORTS[self.users]}"
        return (f"seed={self.seed}", cohort, *PATCHES[self.patch], *MODES[self.mode], *target)


def cells(
    dataset: str,
    users: int,
    epsilons: Sequence[float | None] = EPSILONS,
    mode: str = "central",
    patch: str = PATCH,
    seeds: Sequence[int] = (0,),
) -> list[Cell]:
    return [
        Cell(dataset, users, "none" if epsilon is None else mode, patch, epsilon, seed)
        for seed, epsilon in product(seeds, epsilons)
    ]


HEADLINES = {
    "gain_kept_eps3_100k": (100_000, HALF, 3.0),
    "gain_kept_eps3_100k_a_tenth_a_round": (100_000, PATCH, 3.0),
    "gain_kept_eps1_1m": (1_000_000, PATCH, 1.0),
}
UNSAMPLED = ("distributed", "dp-ftrl", "local")
PARTS: dict[str, list[Cell]] = {
    "claim": cells("bazaar", 100_000, (None, 3.0)),
    "users-10k": cells("bazaar", 10_000),
    "users-1m": cells("bazaar", 1_000_000, (None, 1.0)),
    "users-100k": cells("bazaar", 100_000, (None, 3.0, 1.0, 8.0, 0.5, 4.0, 2.0)),
    "modes-10k": [cell for mode in UNSAMPLED for cell in cells("bazaar", 10_000, (8.0,), mode)],
    "plain-100k": cells("bazaar", 100_000, (None, 3.0), patch=PLAIN),
    "more-100k": cells("bazaar", 100_000, (None, 3.0), patch=MORE),
    "half-100k": cells("bazaar", 100_000, (None, 3.0), patch=HALF),
    "half-seeds": cells("bazaar", 100_000, (None, 3.0), patch=HALF, seeds=(1, 2)),
    "plain-half-100k": cells("bazaar", 100_000, (None, 3.0), patch=PLAIN_HALF),
    "plain-half-seeds": cells("bazaar", 100_000, (None, 3.0), patch=PLAIN_HALF, seeds=(1, 2)),
    "more-seeds": cells("bazaar", 100_000, (None, 3.0), patch=MORE, seeds=(1, 2)),
    "small-100k": cells("bazaar", 100_000, (None, 3.0), patch=TINY),
    "full-10k": cells("bazaar", 10_000, (None, 8.0), patch=FULL),
    "ml-1m": cells("ml-1m", 6_040),
    "seeds": cells("bazaar", 100_000, (None, 3.0), seeds=(1, 2)),
    "plain-seeds": cells("bazaar", 100_000, (None, 3.0), patch=PLAIN, seeds=(1, 2)),
    "seeds-1m": cells("bazaar", 1_000_000, (None, 1.0), seeds=(1, 2)),
    "seeds-10k": cells("bazaar", 10_000, seeds=(1, 2)),
    "all-seeds": cells("bazaar", 100_000, (8.0, 4.0, 2.0, 1.0, 0.5), seeds=(1, 2)),
    "ml-1m-seeds": cells("ml-1m", 6_040, seeds=(1, 2)),
    "modes-100k": [cell for mode in ("distributed", "dp-ftrl") for cell in cells("bazaar", 100_000, (3.0,), mode)],
    "full-100k": cells("bazaar", 100_000, (None, 3.0), patch=FULL),
    "rest-1m": cells("bazaar", 1_000_000, (0.5, 2.0, 4.0, 8.0)),
}
COSTS = {"overhead": cost.overhead, "accounting": cost.accounting}
STUDIES: dict[str, object] = {**PARTS, **COSTS}


def measured(cell: Cell, world: World) -> Row:
    """NDCG@10 of the judges under the cloud's model, the federated patch, and one personal step from it."""
    started = time.perf_counter()
    config = config_of(cell.dataset, cell.users, cell.overrides)
    made = federated(config, world.base)
    ndcg = world.ndcg(config, made.patch_P)
    return {
        "study": "gain",
        **asdict(cell),
        "parameters": len(made.patch_P),
        "judges": len(world.judges_U),
        **{f"ndcg_{variant}": float(values_U.mean()) for variant, values_U in ndcg.items()},
        "spent": made.spent.get("epsilon"),
        "delta": made.spent.get("delta"),
        "noise_multiplier": made.spent.get("noise_multiplier"),
        "sampler": made.spent.get("sampler"),
        "rounds": config.federation.rounds,
        "cohort": config.federation.cohort_size,
        "ranks": packed(ndcg["global"]),
        "base_ranks": packed(ndcg["base"]) if cell.epsilon is None else "",
        "seconds": round(time.perf_counter() - started, 1),
    }


def headline(rows: Sequence[Row]) -> dict[str, float]:
    """What the rows support, and the figures of the two other studies in this folder that have been measured."""
    gains = [row for row in rows if row["study"] == "gain"]
    figures: dict[str, float] = {}
    for name, (users, patch, epsilon) in HEADLINES.items():
        kept = gain_kept(gains, "bazaar", users, "central", patch, epsilon)
        if kept is not None:
            figures[name] = kept.kept
    of_best = kept_of_best(gains, "bazaar", 100_000, "central", 3.0)
    figures |= {} if of_best is None else {"gain_kept_eps3_100k_of_best": of_best}
    figures |= cost.figures(rows)
    for file in (HERE / "audit.json", HERE / "graph.json"):
        figures |= read_results(file)["headline"] if file.exists() else {}
    return figures


def todo(names: Sequence[str], rows: Sequence[Row]) -> Iterator[Cell]:
    """The cells of these parts that have no row, each once."""
    known = {tuple(row.get(name) for name in KEY[1:]) for row in rows if row["study"] == "gain"}
    for name in names:
        for cell in PARTS.get(name, ()):
            key = tuple(asdict(cell).values())
            if key not in known:
                known.add(key)
                yield cell


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.privacy.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--parts", type=names_among(STUDIES), default=list(STUDIES), help=", ".join(STUDIES))
    parser.add_argument("--json", type=Path, default=OUT)
    parser.add_argument("--clouds", type=Path, default=CLOUDS, help="where trained clouds are kept")
    parser.add_argument("--readme", action="store_true", help="measure nothing; headline and README only")
    options = parser.parse_args(arguments)
    if not options.readme:
        torch.set_num_threads(1)
        _measure(options.parts, options.json, options.clouds)
    held = read_results(options.json)
    if held["headline"] != headline(held["rows"]):  # another study of this folder was run since
        write_results(options.json, [], headline, KEY)
    readme.update(HERE / "README.md", options.json)


def _measure(parts: Sequence[str], path: Path, clouds: Path) -> None:
    worlds = {dataset: World(dataset, clouds) for dataset in ("bazaar", "ml-1m")}
    for part in parts:
        known = read_results(path)["rows"] if path.exists() else []
        if part in PARTS:
            for cell in todo([part], known):
                _keep(path, measured(cell, worlds[cell.dataset]))
        elif not any(row["study"] == part for row in known):
            for row in COSTS[part](worlds["bazaar"].base):
                _keep(path, row)


def _keep(path: Path, row: Row) -> None:
    write_results(path, [row], headline, KEY)
    told = {name: value for name, value in row.items() if name not in ("ranks", "base_ranks")}
    print(*(f"{name}={np.round(v, 4) if isinstance(v, float) else v}" for name, v in told.items()), flush=True)


if __name__ == "__main__":
    main()
