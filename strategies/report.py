"""What happened in a round, as it is recorded and printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fedquilt.errors import FederationError
from strategies.pipeline import CLIP_TOLERANCE, Rejection, Usable
from strategies.private import Released

_MAY_LACK = ("notes", "release_digest", "privacy_head", "suspicion")
MAX_LISTED = 50  # rejected users by name in a record, and different reasons; a hostile node could send thousands


@dataclass(frozen=True)
class RoundReport:
    """``replies``: usable updates. ``update_norm`` is of the rows as they came, after the devices' clipping.

    ``notes``: what the aggregation says of itself, such as that it fell back to another rule. ``release_digest``,
    ``privacy_head``: what left under differential privacy, and the ledger's head that holds its event; then ``metrics``
    and ``update_norm`` are empty, as no noise covers them. ``suspicion``: who was charged, and is not drawn any more.
    """

    round_: int
    replies: int
    rejected: tuple[Rejection, ...]
    reclipped: int
    bytes_up: int
    bytes_down: int
    metrics: dict[str, float | None]
    update_norm: dict[str, float]
    notes: tuple[str, ...] = ()
    release_digest: str = ""
    privacy_head: str = ""
    suspicion: Mapping[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The fields of a line in metrics.jsonl, but for ``seconds``.

        ``rejected`` lists the first ``MAX_LISTED``; ``num_rejected`` and ``rejected_reasons`` count all of them.
        """
        listed = [asdict(rejection) for rejection in self.rejected[:MAX_LISTED]]
        counts = {"num_rejected": len(self.rejected), "rejected_reasons": _by_reason(self.rejected)}
        fields = asdict(replace(self, rejected=()))
        fields |= {"round": fields.pop("round_"), "notes": list(self.notes)}
        told = {name: value for name, value in fields.items() if name not in _MAY_LACK or value}
        return {"kind": "round", **told, "rejected": listed, **counts}

    def flat(self) -> dict[str, float]:
        """Numbers only, for Flower's MetricRecord."""
        counts = {"replies": self.replies, "rejected": len(self.rejected), "reclipped": self.reclipped}
        told = {name: value for name, value in self.metrics.items() if value is not None}
        norm = {"update-norm-median": self.update_norm["median"]} if self.update_norm else {}
        return {**told, **counts, **norm}


def report_round(
    round_: int,
    usable: Usable,
    clipping_norm: float,
    bytes_down: int,
    bytes_up: int,
    notes: tuple[str, ...] = (),
    suspicion: Mapping[str, Any] | None = None,
) -> RoundReport:
    norms_K = usable.norms_K
    return RoundReport(
        round_=round_,
        replies=len(usable.client_ids_K),
        rejected=usable.rejected,
        reclipped=usable.reclipped,
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        metrics={name: _finite_mean(values_K) for name, values_K in usable.metrics.items()},
        update_norm={
            "median": float(np.median(norms_K)),
            "clipped_share": float(np.mean(norms_K >= clipping_norm * (1 - CLIP_TOLERANCE))),
        },
        notes=notes,
        suspicion=suspicion or {},
    )


def report_release(round_: int, usable: Usable, released: Released, bytes_down: int, bytes_up: int) -> RoundReport:
    """Without users' losses and norms: their means and medians are not covered by the noise."""
    return RoundReport(
        round_=round_,
        replies=len(usable.client_ids_K),
        rejected=usable.rejected,
        reclipped=usable.reclipped,
        bytes_up=bytes_up,
        bytes_down=bytes_down,
        metrics={},
        update_norm={},
        notes=released.notes,
        release_digest=released.digest,
        privacy_head=released.head,
    )


def require_enough(usable: Usable, min_replies: int, round_: int) -> None:
    if len(usable.client_ids_K) >= max(min_replies, 1):
        return
    causes = Counter(rejection.reason for rejection in usable.rejected)
    told = "; ".join(f"{count} × {reason}" for reason, count in causes.most_common(5)) or "nobody was asked"
    raise FederationError(
        f"round {round_}: {len(usable.client_ids_K)} usable updates, federation.min_replies is {min_replies}: {told}"
    )


def _by_reason(rejected: Sequence[Rejection]) -> dict[str, int]:
    """Counts, most frequent first; rare reasons beyond ``MAX_LISTED`` are counted together."""
    counts = Counter(rejection.reason for rejection in rejected).most_common()
    rest = sum(count for _, count in counts[MAX_LISTED:])
    return dict(counts[:MAX_LISTED]) | ({"other reasons": rest} if rest else {})


def _finite_mean(values_K: np.ndarray) -> float | None:
    """Of the users who sent a number; None where nobody did."""
    finite = values_K[np.isfinite(values_K)]
    return float(finite.mean(dtype=np.float64)) if finite.size else None
