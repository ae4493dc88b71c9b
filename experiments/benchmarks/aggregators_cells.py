"""What the aggregator benchmark times: ours, byzfl's, Flower's own and plain torch, each as a call on updates [K, P].

Imported by our interpreter and by one that has byzfl: it imports nothing of either before it is asked to.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch

Call = Callable[[torch.Tensor], torch.Tensor]
IN_PLACE = "-in-place"
OF_ITEMS = ("skew-screening", "support-screening", "frozen-parts")
"""Pre-rules that refuse rows of which they do not know where the items lie. The others take P as one part."""
SUPERNODES = 4
CLIPPING = ("clipping", "adaptive-clipping")
"""Where byzfl overwrites its input. Of these there are two rows: of who leaves the input as it is, by a copy that is in
the clock, and ("-in-place") of who does not."""


def updates(k: int, p: int, f: int) -> torch.Tensor:
    """Unit normal rows, the last f as in ALIE: the others' mean less 1.5 standard deviations."""
    rows_KP = torch.randn(k, p, generator=torch.Generator().manual_seed(0))
    if f:
        honest_KP = rows_KP[: k - f]
        rows_KP[k - f :] = honest_KP.mean(dim=0) - 1.5 * honest_KP.std(dim=0)
    return rows_KP


def item_spec(p: int) -> Any:
    """A patch whose rows of items, of width 8 at either side and with a bias, are all of it but a small head."""
    from fedquilt.types import PatchSpec

    items = p // 17
    sides = tuple((f"item_{side}.factors", (items, 8)) for side in ("in", "out"))
    return PatchSpec((("item_bias", (items,)), *sides, ("head", (p - 17 * items,))))


def ours(row: str, k: int, f: int, p: int) -> Call | None:
    from strategies.rules import AGGREGATORS, PRE_RULES, RoundContext, in_round

    name = row.removesuffix(IN_PLACE)
    spec, ids_K = item_spec(p) if name in OF_ITEMS else None, np.arange(k)
    context = RoundContext(spec=spec, client_ids_K=ids_K, nodes_K=ids_K % SUPERNODES)
    options: dict[str, dict[str, Any]] = {
        "krum": {"num_neighbours": max(k - f - 1, 1)},  # byzfl's, so that results can be compared
        "multi-krum": {"num_neighbours": max(k - f - 1, 1)},
        "geometric-median": {"smoothing": 0.1},
        "centered-clipping": {"radius": 100.0},
        "clipping": {"norm": 2.0},
        "supernode-cap": {"max_users": max(k // 10, 1)},
    }
    registry = PRE_RULES if name in PRE_RULES else AGGREGATORS
    entry = registry[name]
    given = {**options.get(name, {}), **({"num_byzantine": f} if "num_byzantine" in entry.__dataclass_fields__ else {})}
    rule, even_K = entry(**given), torch.full((k,), 1 / k)
    if row != name:
        return lambda rows_KP: rule.overwriting(rows_KP, even_K, context)[0]
    if registry is PRE_RULES:
        return lambda rows_KP: rule(rows_KP, even_K, context)[0]
    if getattr(rule, "needs_root", False):
        return lambda rows_KP: in_round(rule, replace(context, root_update_P=rows_KP[0]))(rows_KP, even_K, {})
    bound = in_round(rule, context)
    return lambda rows_KP: bound(rows_KP, even_K, {})


def byzfl(name: str, k: int, f: int, p: int) -> Call | None:
    prepare("byzfl")
    import byzfl

    table = {
        "mean": lambda: byzfl.Average(),
        "median": lambda: byzfl.Median(),
        "trimmed-mean": lambda: byzfl.TrMean(f=f),
        "mean-of-medians": lambda: byzfl.Meamed(f=f),
        "krum": lambda: byzfl.Krum(f=f),
        "multi-krum": lambda: byzfl.MultiKrum(f=f),
        "geometric-median": lambda: byzfl.GeometricMedian(nu=0.1, T=3),
        "centered-clipping": lambda: byzfl.CenteredClipping(L=1, tau=100.0),
        "caf": lambda: byzfl.CAF(f=f),
        "mda": lambda: byzfl.MDA(f=f),
        "nearest-neighbour-mixing": lambda: byzfl.NNM(f=f),
        "bucketing": lambda: byzfl.Bucketing(s=2),
        "clipping-in-place": lambda: byzfl.Clipping(c=2.0),
        "adaptive-clipping-in-place": lambda: byzfl.ARC(f=f),
    }
    if name in CLIPPING:
        overwriting = table[name + IN_PLACE]()
        return lambda rows_KP: overwriting(rows_KP.clone())
    return table[name]() if name in table else None


def flower(name: str, k: int, f: int, p: int) -> Call | None:
    """Flower's own functions on one array a client, as its strategies call them."""
    from flwr.server.strategy import aggregate

    def lists(rows_KP: torch.Tensor) -> list[tuple[list[np.ndarray], int]]:
        return [([row_P], 1) for row_P in rows_KP.numpy()]

    table: dict[str, Call] = {
        "mean": lambda rows: torch.from_numpy(aggregate.aggregate(lists(rows))[0]),
        "median": lambda rows: torch.from_numpy(aggregate.aggregate_median(lists(rows))[0]),
        "trimmed-mean": lambda rows: torch.from_numpy(aggregate.aggregate_trimmed_avg(lists(rows), f / k)[0]),
        "krum": lambda rows: torch.from_numpy(aggregate.aggregate_krum(lists(rows), f, 0)[0]),
        "multi-krum": lambda rows: torch.from_numpy(aggregate.aggregate_krum(lists(rows), f, k - f)[0]),
        "bulyan": lambda rows: torch.from_numpy(
            aggregate.aggregate_bulyan(lists(rows), f, aggregate.aggregate_krum, to_keep=0)[0]
        ),
    }
    return table.get(name)


def torch_distances(rows_KP: torch.Tensor) -> torch.Tensor:
    gram_KK = rows_KP @ rows_KP.T
    squares_K = gram_KK.diagonal()
    return (squares_K[:, None] + squares_K - 2 * gram_KK).fill_diagonal_(0).clamp_(min=0)


def plain_torch(name: str, k: int, f: int, p: int) -> Call | None:
    """What a few lines of torch reach, with memory of K·P + K²."""

    def sorted_columns(rows_KP: torch.Tensor, reduce: Call) -> torch.Tensor:
        blocks = [rows_KP[:, at : at + 4096].T.contiguous().sort(1)[0] for at in range(0, rows_KP.shape[1], 4096)]
        return torch.cat([reduce(block) for block in blocks])

    def scores(rows_KP: torch.Tensor) -> torch.Tensor:
        return torch_distances(rows_KP).sort(1)[0][:, 1 : k - f].mean(1)

    def weiszfeld(rows_KP: torch.Tensor) -> torch.Tensor:
        squares_K, point_P = torch.stack([row_P.dot(row_P) for row_P in rows_KP]), torch.zeros(rows_KP.shape[1])
        for _ in range(3):
            far_K = (squares_K - 2 * (rows_KP @ point_P) + point_P.dot(point_P)).clamp_(min=0).sqrt_().clamp_(min=0.1)
            point_P = ((1 / far_K) @ rows_KP) / (1 / far_K).sum()
        return point_P

    def mixing(rows_KP: torch.Tensor) -> torch.Tensor:
        nearest = torch_distances(rows_KP).topk(k - f, dim=1, largest=False)[1]
        return torch.zeros(k, k).scatter_(1, nearest, 1 / (k - f)) @ rows_KP

    table: dict[str, Call] = {
        "mean": lambda rows: rows.mean(0),
        "median": lambda rows: sorted_columns(rows, lambda s: (s[:, (k - 1) // 2] + s[:, k // 2]) / 2),
        "trimmed-mean": lambda rows: sorted_columns(rows, lambda s: s[:, f : k - f].mean(1)),
        "krum": lambda rows: rows[scores(rows).argmin()],
        "multi-krum": lambda rows: rows[scores(rows).topk(k - f, largest=False)[1]].mean(0),
        "geometric-median": weiszfeld,
        "centered-clipping": lambda rows: ((100 / rows.norm(dim=1)).clamp_(max=1) / k) @ rows,
        "nearest-neighbour-mixing": mixing,
        "clipping": lambda rows: rows * (2 / rows.norm(dim=1)).clamp_(max=1)[:, None],
        "clipping-in-place": lambda rows: rows.mul_((2 / rows.norm(dim=1)).clamp_(max=1)[:, None]),
    }
    return table.get(name)


MAKERS = {"ours": ours, "byzfl": byzfl, "flower": flower, "torch": plain_torch}
MODULES = {"ours": "strategies.rules", "byzfl": "byzfl", "flower": "flwr.server.strategy.aggregate", "torch": "torch"}


def prepare(who: str) -> None:
    """Imports what ``who`` needs, where it is installed. byzfl wants torchvision for a data set only; a stand-in, as
    its wheel may not fit torch's."""
    if who == "byzfl":
        for module in ("torchvision", "torchvision.datasets", "torchvision.transforms"):
            sys.modules.setdefault(module, MagicMock())
    with suppress(ImportError):  # the call that needs it will tell
        importlib.import_module(MODULES[who])
