"""What users are charged for a reply: on the device's ledger before anything of it leaves.

By the clipping norm, which bounds every row; or, with ``privacy.device_norms``, by the norm of the row that was sent.
Under central noise of std z C a row of norm n moves the sum by n, so it costs its user one unsampled Gaussian with
mu = n / (z C). A user whose mu² never add up to more than the limit's is protected by the limit, although norms, and
with them who still takes part, depend on users' data: an individual filter (Feldman and Zrnic 2021, arXiv:2008.11193;
for exact Gaussians Smith and Thakurta 2022, arXiv:2210.17520, and Koskela, Tobaben and Honkela 2022, arXiv:2209.15596).
Neighbours are one user added or removed. Norms stay here: in memory, and on the device's own ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Protocol

import numpy as np

from client.device_ledger import DeviceLedger
from client.noise import Sent
from fedquilt.privacy.clipping import row_norms
from fedquilt.privacy.device_events import DeviceRound, NormedDeviceRound
from fedquilt.privacy.field_checks import NORM_GRID
from fedquilt.wire import TrainReply, read_train_reply, write_train_reply

_ROUNDING = 2.0**-16  # relative; above the error of ``row_norms``


class EventOf(Protocol):
    def __call__(self, ids_K: np.ndarray, digest: str = "", /) -> DeviceRound:
        """What the round costs each of these users by the clipping norm; ``digest``: of what they send."""


def charged(ledger: DeviceLedger, sent: Sent, event_of: EventOf) -> Sent:
    """By the clipping norm; everybody whose row is there was admitted at that price."""
    theirs_K = sent.reply.client_ids_K
    ledger.record([(event_of(theirs_K, sent.digest), theirs_K)])
    return sent


def charged_by_norms(ledger: DeviceLedger, sent: Sent, event_of: EventOf) -> Sent:
    """By each row's own norm, one event a group of equal share. Users without room for theirs are not in what returns.

    A group is known by a digest of its own rows: asked again, the same bytes are charged once, whoever else is there.
    """
    reply = sent.reply
    assert isinstance(reply, TrainReply)  # of mode central; ``promises`` refuses the others
    shares_K = norm_shares(reply, event_of(reply.client_ids_K).clipping_norm)
    fits_K = np.zeros(len(shares_K), bool)
    for share, mask_K in _groups(shares_K):
        ids_K = reply.client_ids_K[mask_K]
        fits_K[mask_K] = ledger.admit(normed(event_of(ids_K), share), ids_K)
    kept, events = only(reply, fits_K), []
    for share, mask_K in _groups(shares_K[fits_K]):
        theirs = only(kept, mask_K)
        event = normed(event_of(theirs.client_ids_K, _digest(theirs)), share)
        events.append((event, theirs.client_ids_K))
    ledger.record(events)
    taking_part_K = sent.taking_part_K.copy()
    taking_part_K[taking_part_K] = fits_K
    return replace(sent, reply=kept, taking_part_K=taking_part_K)


def least(event: DeviceRound) -> NormedDeviceRound:
    """What the round costs at least: the price before training, when no norm is known."""
    return normed(event, 1 / NORM_GRID)


def normed(event: DeviceRound, norm_share: float) -> NormedDeviceRound:
    facts = {field.name: getattr(event, field.name) for field in fields(event)}
    return NormedDeviceRound(**facts, norm_share=norm_share)


def norm_shares(reply: TrainReply, clipping_norm: float) -> np.ndarray:
    """norm / C [K] of the rows as the cloud will read them, rounded up to sixteenths: ⌈16 n / C⌉ / 16, from 1/16 to 1.

    A row of zeros counts 1/16: that its user answered is seen.
    """
    norms_K = row_norms(_as_read(reply)) * (1 + _ROUNDING)
    return np.ceil(NORM_GRID * norms_K / clipping_norm).clip(1, NORM_GRID) / NORM_GRID


def only(reply: TrainReply, mask_K: np.ndarray) -> TrainReply:
    """With the rows of these users and nothing of the others; the reply itself where these are all."""
    if mask_K.all():
        return reply
    return replace(
        reply,
        client_ids_K=reply.client_ids_K[mask_K],
        updates_KP=reply.updates_KP[mask_K],
        num_examples_K=reply.num_examples_K[mask_K],
        metrics={name: values_K[mask_K] for name, values_K in reply.metrics.items()},
        places_KS=None if reply.places_KS is None else reply.places_KS[mask_K],
    )


def _groups(shares_K: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    for share in np.unique(shares_K).tolist():
        yield share, shares_K == share


def _digest(reply: TrainReply) -> str:
    parts = f"{reply.round_}/".encode(), reply.client_ids_K.tobytes(), reply.updates_KP.tobytes()
    return hashlib.sha256(b"".join(parts)).hexdigest()[:32]


def _as_read(reply: TrainReply) -> np.ndarray:
    if reply.places_KS is None:
        return reply.updates_KP
    return read_train_reply(write_train_reply(reply), reply.updates_KP.shape[1]).updates_KP
