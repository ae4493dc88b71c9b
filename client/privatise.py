"""What leaves the device: rows of bounded norm from users who have something to say, and nothing of the others."""

from __future__ import annotations

import numpy as np
import torch

from client.parallel import chunks_of, map_chunks
from client.task import LocalUpdates
from fedquilt.errors import FederationError
from fedquilt.privacy.clipping import clip_rows
from fedquilt.wire import TrainReply

NOT_FINITE, NO_EXAMPLES, OVER_LIMIT = 1, 2, 3  # keys of fedquilt.wire.DECLINED
_ROWS_AT_ONCE = 16  # in the search for the largest entries: they stay in the cache


def privatise(
    local: LocalUpdates,
    client_ids_K: np.ndarray,
    clipping_norm: float,
    round_: int,
    spec_hash: str,
    upload_entries: int = 0,
) -> tuple[TrainReply, np.ndarray]:
    """-> (the reply, mask [K] of the users in it). Rows are clipped to ``clipping_norm`` in place.

    Of each row the ``upload_entries`` largest entries are sent, where that is fewer than all (0: all).
    """
    require_rows(local, len(client_ids_K))
    updates_KP = np.ascontiguousarray(local.updates_KP, np.float32)
    clipped_KP, norms_K = clip_rows(updates_KP, clipping_norm, in_place=updates_KP.flags.writeable)
    num_examples_K = np.asarray(local.num_examples_K).astype(np.int64)
    why_K = np.where(num_examples_K <= 0, NO_EXAMPLES, np.where(np.isfinite(norms_K), 0, NOT_FINITE))
    taking_part_K = why_K == 0
    rows_KP = clipped_KP if taking_part_K.all() else clipped_KP[taking_part_K]
    places_KS = largest(rows_KP, upload_entries) if 0 < upload_entries < rows_KP.shape[1] else None
    reply = TrainReply(
        round_=round_,
        spec_hash=spec_hash,
        client_ids_K=client_ids_K[taking_part_K],
        updates_KP=rows_KP,
        num_examples_K=num_examples_K[taking_part_K],
        declined_D=client_ids_K[~taking_part_K],
        declined_why_D=why_K[~taking_part_K],
        metrics={name: np.asarray(values_K)[taking_part_K] for name, values_K in local.metrics.items()},
        places_KS=places_KS,
    )
    return reply, taking_part_K


def largest(rows_KP: np.ndarray, count: int) -> np.ndarray:
    """Increasing places of each row's ``count`` entries of largest magnitude, [K, count]."""
    places_KS = np.empty((len(rows_KP), count), np.int64)

    def work(rows: slice) -> None:
        magnitudes = torch.from_numpy(rows_KP[rows]).abs()
        places_KS[rows] = magnitudes.topk(count, dim=1, sorted=False).indices.numpy()
        places_KS[rows].sort(axis=1)

    map_chunks(work, chunks_of(len(rows_KP), _ROWS_AT_ONCE))
    return places_KS


def require_rows(local: LocalUpdates, k: int) -> None:
    sizes = {"updates_KP": len(local.updates_KP), "num_examples_K": len(local.num_examples_K)}
    sizes |= {name: len(values) for name, values in local.metrics.items()}
    if local.personal_KR is not None:
        sizes["personal_KR"] = len(local.personal_KR)
    wrong = {name: size for name, size in sizes.items() if size != k}
    if wrong:
        raise FederationError(f"the local task was asked for {k} users and returned rows for {wrong}")
