"""Per-user results of an evaluation, put together from the nodes' replies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedquilt.wire import EvaluateReply

Examine = Callable[[str, np.ndarray, Mapping[str, np.ndarray]], str]
"""(part, client_ids_U, arrays) of one node -> what cannot be right about it, "" where nothing is."""

Layout = tuple[tuple[str, str, tuple[int, ...]], ...]  # (name, dtype, shape of a user's part) of each array


@dataclass(frozen=True)
class Evaluation:
    """Every reachable user's arrays (first axis U), sorted by client id.

    ``missing``: nodes that did not answer, and why; ``refused``: nodes whose answer cannot be believed, and why.
    """

    round_: int
    part: str
    client_ids_U: np.ndarray
    arrays: Mapping[str, np.ndarray]
    missing: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()

    def means(self) -> dict[str, float]:
        """Mean over users of every array that holds one finite number per user."""
        flat = {name: values.astype(np.float64) for name, values in self.arrays.items() if values.ndim == 1}
        return {
            name: float(values.mean()) for name, values in flat.items() if len(values) and np.isfinite(values).all()
        }


def unexamined(part: str, client_ids_U: np.ndarray, arrays: Mapping[str, np.ndarray]) -> str:
    return ""


def put_together(
    round_: int,
    part: str,
    answers: Sequence[tuple[str, np.ndarray, EvaluateReply | str]],
    examine: Examine = unexamined,
) -> Evaluation:
    """``answers``: (node name, the users it was asked for, its reply or why there is none)."""
    missing = [f"{name}: {reply}" for name, _, reply in answers if isinstance(reply, str)]
    refused: list[str] = []
    sound: list[tuple[str, EvaluateReply]] = []
    for name, asked, reply in answers:
        if isinstance(reply, str):
            continue
        if fault := _fault(reply, asked, round_, part) or examine(part, reply.client_ids_K, reply.arrays):
            refused.append(f"{name}: {fault}")
        else:
            sound.append((name, reply))
    usual = _usual_layout([reply for _, reply in sound])
    kept = [reply for _, reply in sound if _layout(reply) == usual]
    refused += [
        f"{name}: reply holds arrays {_layout(reply)}, most users' nodes sent {usual}"
        for name, reply in sound
        if _layout(reply) != usual
    ]
    ids = np.concatenate([reply.client_ids_K for reply in kept] or [np.empty(0, np.int64)])
    order = np.argsort(ids, kind="stable")
    names = kept[0].arrays if kept else {}
    arrays = {name: np.concatenate([reply.arrays[name] for reply in kept])[order] for name in names}
    return Evaluation(round_, part, ids[order], arrays, tuple(missing), tuple(refused))


def _fault(reply: EvaluateReply, asked: np.ndarray, round_: int, part: str) -> str:
    if (reply.round_, reply.part) != (round_, part):
        return f"reply is for {reply.part!r} of round {reply.round_}, not {part!r} of round {round_}"
    ids = reply.client_ids_K
    if len(np.unique(ids)) != len(ids) or not np.isin(ids, asked).all():
        return "reply holds users twice or users that were not asked"
    return ""


def _usual_layout(replies: Sequence[EvaluateReply]) -> Layout:
    """The layout that most users' nodes sent: one node cannot decide what the others should have sent."""
    votes: Counter[Layout] = Counter()
    for reply in replies:
        votes[_layout(reply)] += len(reply.client_ids_K)
    return votes.most_common(1)[0][0] if votes else ()


def _layout(reply: EvaluateReply) -> Layout:
    return tuple((name, str(array.dtype), array.shape[1:]) for name, array in sorted(reply.arrays.items()))
