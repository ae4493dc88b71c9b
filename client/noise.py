"""What leaves the device in private rounds: clipped rows, rows that it noised itself, or shares of a noised sum."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from client.device_ledger import distributed_noise
from client.privatise import NOT_FINITE, privatise, require_rows
from client.task import LocalUpdates
from fedquilt.privacy.clipping import row_norms
from fedquilt.privacy.device_events import ROW_DIGEST
from fedquilt.privacy.events import LocalRelease
from fedquilt.privacy.mechanisms import digest_of, local_release
from fedquilt.privacy.randomness import Source
from fedquilt.privacy.terms import WITHIN, Terms
from fedquilt.wire import TrainReply
from fedquilt.wire_shares import SharesReply

_WORDS = 64


@dataclass(frozen=True)
class Sent:
    """The reply, what tells each user's bytes in it apart, and the mask [K] of those asked whose personal patch moved.

    ``shares_KP``: what a reply of shares is the sum of, uint32 [K, P].
    """

    reply: TrainReply | SharesReply
    digests_K: np.ndarray
    taking_part_K: np.ndarray
    shares_KP: np.ndarray | None = None


@dataclass(frozen=True)
class _Asked:
    """One round's request to one node. ``release``: the round and all users whom the order named."""

    client_ids_K: np.ndarray
    terms: Terms
    round_: int
    spec_hash: str
    upload_entries: int
    source: Source
    release: str


def private_reply(
    local: LocalUpdates,
    client_ids_K: np.ndarray,
    terms: Terms,
    round_: int,
    spec_hash: str,
    upload_entries: int,
    source: Source,
    cohort: str = "",
) -> Sent:
    """``cohort``: hash of all users whom the order named. Asked of others, a round is another release of equal rows."""
    require_rows(local, len(client_ids_K))
    asked = _Asked(client_ids_K, terms, round_, spec_hash, upload_entries, source, f"{round_}/{cohort}")
    return _REPLIES.get(terms.mode, _clipped)(local, asked)


def _clipped(local: LocalUpdates, asked: _Asked) -> Sent:
    """Central and DP-FTRL: the cloud adds the noise. In adaptive rounds each row says whether it was cut."""
    terms = asked.terms
    if terms.adaptive:
        within_K = (row_norms(local.updates_KP) <= terms.clipping_norm).astype(np.float32)
        local = replace(local, metrics={WITHIN: within_K})
    reply, taking_part_K = privatise(
        local, asked.client_ids_K, terms.clipping_norm, asked.round_, asked.spec_hash, asked.upload_entries
    )
    return Sent(reply, row_digests(reply.client_ids_K, reply.updates_KP, asked.release), taking_part_K)


def _noised(local: LocalUpdates, asked: _Asked) -> Sent:
    """Every user who is asked sends a row: one without examples sends noise alone, as its absence would tell of it.

    No number of examples and no metrics: no noise covers them. Rows go out dense, as noise has no largest entries.
    """
    sound_K, rows_KP = _sound(local)
    terms, ids_K = asked.terms, asked.client_ids_K[sound_K]
    noised_KP = np.empty_like(rows_KP)
    for row, client_id in enumerate(ids_K.tolist()):
        event = LocalRelease(terms.run, asked.round_, client_id, terms.noise_multiplier, terms.clipping_norm,
                             randomness=terms.randomness)  # fmt: skip
        noised_KP[row] = local_release(rows_KP[row], event, asked.source)
    declined_D = asked.client_ids_K[~sound_K]
    reply = TrainReply(
        round_=asked.round_,
        spec_hash=asked.spec_hash,
        client_ids_K=ids_K,
        updates_KP=noised_KP,
        num_examples_K=np.ones(len(ids_K), np.int64),
        declined_D=declined_D,
        declined_why_D=np.full(len(declined_D), NOT_FINITE),
    )
    digests_K = row_digests(ids_K, noised_KP, asked.release)
    return Sent(reply, digests_K, sound_K & (np.asarray(local.num_examples_K) > 0))


def _shares(local: LocalUpdates, asked: _Asked) -> Sent:
    """The sum of this node's shares modulo 2^32. As above, every user adds noise."""
    sound_K, rows_KP = _sound(local)
    terms, ids_K = asked.terms, asked.client_ids_K[sound_K]
    noise = distributed_noise(terms, rows_KP.shape[1])
    shares_KP = rows_KP.view(np.uint32)  # each share takes the place of its row
    for place, client_id in enumerate(ids_K.tolist()):
        row_P = rows_KP[place]
        context = f"{terms.run}/{asked.round_}/share/{client_id}/{noise}/{digest_of(row_P)}"
        shares_KP[place] = noise.share(row_P, asked.source, context).astype(np.uint32)  # two's complement: modulo 2^32
    declined_D = asked.client_ids_K[~sound_K]
    reply = SharesReply(
        round_=asked.round_,
        spec_hash=asked.spec_hash,
        client_ids_K=ids_K,
        sum_P=sum_of(shares_KP),
        declined_D=declined_D,
        declined_why_D=np.full(len(declined_D), NOT_FINITE),
    )
    digests_K = row_digests(ids_K, shares_KP, asked.release)
    return Sent(reply, digests_K, sound_K & (np.asarray(local.num_examples_K) > 0), shares_KP)


_REPLIES: dict[str, Callable[[LocalUpdates, _Asked], Sent]] = {"local": _noised, "distributed": _shares}


def _sound(local: LocalUpdates) -> tuple[np.ndarray, np.ndarray]:
    """-> (mask [K] of finite rows, these rows; zeros for users without examples)."""
    rows_KP = np.ascontiguousarray(local.updates_KP, np.float32)
    empty_K = np.asarray(local.num_examples_K) <= 0
    sound_K = empty_K | np.isfinite(row_norms(rows_KP))
    kept_KP = rows_KP[sound_K].copy()
    kept_KP[empty_K[sound_K]] = 0
    return sound_K, kept_KP


def sum_of(shares_KP: np.ndarray) -> np.ndarray:
    """Modulo 2^32."""
    return shares_KP.sum(axis=0, dtype=np.uint32)


def row_digests(client_ids_K: np.ndarray, rows_KP: np.ndarray, release: str) -> np.ndarray:
    """[K], one for each user's bytes in this release; what others send in it changes nothing."""
    rows_KP = np.ascontiguousarray(rows_KP)
    heads = [f"{release}/{client_id}/".encode() for client_id in client_ids_K.tolist()]
    digests = [hashlib.sha256(head + seen) for head, seen in zip(heads, _told_apart(rows_KP), strict=True)]
    return np.array([digest.hexdigest()[:ROW_DIGEST] for digest in digests], f"<U{ROW_DIGEST}")


def _told_apart(rows_KP: np.ndarray) -> list[bytes]:
    """Bytes that tell rows apart, cheaper than a hash: the exclusive or of every 64th word, what is left over,
    the norm and the sum. Each row's are its own, whoever else is there. Nobody is to be fooled by them: the device made
    all rows, and asks only whether it has sent these before.
    """
    words_KW = np.ascontiguousarray(rows_KP).view(np.uint32)
    whole = words_KW.shape[1] // _WORDS * _WORDS
    folded_KF = np.bitwise_xor.reduce(words_KW[:, :whole].reshape(len(words_KW), whole // _WORDS, _WORDS), axis=1)
    floats_KP = rows_KP.astype(np.float32, copy=False)
    sizes_K2 = np.stack([row_norms(floats_KP), floats_KP.sum(axis=1)], axis=1).astype(np.float64)
    parts = zip(folded_KF, words_KW[:, whole:], sizes_K2, strict=True)
    return [b"".join(part.tobytes() for part in row) for row in parts]
