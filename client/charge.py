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
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Protocol, TypeVar

import numpy as np

from client.device_ledger import DeviceLedger
from client.noise import Sent, sum_of
from fedquilt.privacy.clipping import row_norms
from fedquilt.privacy.device_events import DeviceRound, NormedDeviceRound, with_rows
from fedquilt.privacy.field_checks import NORM_GRID
from fedquilt.privacy.mechanisms import digest_of
from fedquilt.wire import TrainReply, read_train_reply, write_train_reply
from fedquilt.wire_shares import SharesReply

T = TypeVar("T")
_ROUNDING = 2.0**-16  # relative; above the error of ``row_norms``


class EventOf(Protocol):
    def __call__(self, ids_K: np.ndarray, /) -> DeviceRound:
        """What the round costs each of these users by the clipping norm."""


def charged(ledger: DeviceLedger, sent: Sent, event_of: EventOf) -> Sent:
    """By the clipping norm. Users who have room for these bytes no more are not in what returns."""
    kept = only(sent, ledger.room(_event(sent, event_of), sent.reply.client_ids_K))
    ledger.record([(_event(kept, event_of), kept.reply.client_ids_K)])
    return kept


def charged_by_norms(ledger: DeviceLedger, sent: Sent, event_of: EventOf) -> Sent:
    """By each row's own norm, an event a group of equal share. Who has no room for it is not in what returns."""
    reply = sent.reply
    assert isinstance(reply, TrainReply)  # of mode central; ``promises`` refuses the others
    shares_K = norm_shares(reply, event_of(reply.client_ids_K).clipping_norm)
    fits_K = np.zeros(len(shares_K), bool)
    for share, mask_K in _groups(shares_K):
        event = normed(_event(only(sent, mask_K), event_of), share)
        fits_K[mask_K] = ledger.room(event, reply.client_ids_K[mask_K])
    kept, events = only(sent, fits_K), []
    for share, mask_K in _groups(shares_K[fits_K]):
        theirs = only(kept, mask_K)
        events.append((normed(_event(theirs, event_of), share), theirs.reply.client_ids_K))
    ledger.record(events)
    return kept


def charged_sum(
    ledger: DeviceLedger, ids_K: np.ndarray, made: Callable[[np.ndarray], tuple[T, DeviceRound]]
) -> tuple[T, np.ndarray]:
    """One sum of users' parts, made again without those who have no room for it; -> (it, its users).

    A sum has one digest: whoever is in another sum than before sends other bytes.
    """
    result, event = made(ids_K)
    fits_K = ledger.room(event, ids_K)
    if not fits_K.all():
        ids_K = ids_K[fits_K]
        result, event = made(ids_K)
    ledger.record([(event, ids_K)])
    return result, ids_K


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


def only(sent: Sent, mask_K: np.ndarray) -> Sent:
    """With what these users send and nothing of the others; the same where these are all."""
    if mask_K.all():
        return sent
    shares_KP = None if sent.shares_KP is None else sent.shares_KP[mask_K]
    reply = _reply(sent.reply, shares_KP, mask_K)
    return replace(sent, reply=reply, digests_K=sent.digests_K[mask_K], shares_KP=shares_KP)


def _reply(
    reply: TrainReply | SharesReply, shares_KP: np.ndarray | None, mask_K: np.ndarray
) -> TrainReply | SharesReply:
    ids_K = reply.client_ids_K[mask_K]
    if isinstance(reply, SharesReply):
        assert shares_KP is not None  # a reply of shares comes with them
        return replace(reply, client_ids_K=ids_K, sum_P=sum_of(shares_KP))
    return replace(
        reply,
        client_ids_K=ids_K,
        updates_KP=reply.updates_KP[mask_K],
        num_examples_K=reply.num_examples_K[mask_K],
        metrics={name: values_K[mask_K] for name, values_K in reply.metrics.items()},
        places_KS=None if reply.places_KS is None else reply.places_KS[mask_K],
    )


def _groups(shares_K: np.ndarray) -> Iterator[tuple[float, np.ndarray]]:
    for share in np.unique(shares_K).tolist():
        yield share, shares_K == share


def _event(sent: Sent, event_of: EventOf) -> DeviceRound:
    ids_K = sent.reply.client_ids_K
    event = event_of(ids_K)
    return with_rows(replace(event, release_digest=_digest(sent, event.mechanism)), ids_K, sent.digests_K)


def _digest(sent: Sent, mechanism: str) -> str:
    """Of what a device noised by itself, the bytes: equal ones in two rounds would be noise that was used twice. Rows
    without noise may well be equal in two rounds, so theirs is of the round too.
    """
    if isinstance(sent.reply, SharesReply):
        return digest_of(sent.reply.sum_P)
    if mechanism == "local":
        return digest_of(sent.reply.updates_KP)
    return hashlib.sha256("".join(sent.digests_K.tolist()).encode()).hexdigest()[:32]


def _as_read(reply: TrainReply) -> np.ndarray:
    if reply.places_KS is None:
        return reply.updates_KP
    return read_train_reply(write_train_reply(reply), reply.updates_KP.shape[1]).updates_KP
