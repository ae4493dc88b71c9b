"""What leaves a device of an evaluation: no more than its owner allows, whatever the cloud asks.

A node with a folder of its own (``device-dir``) is somebody's device and tells nothing unless its owner says otherwise
(``fedquilt device --share-evaluation``, the node's configuration ``share-evaluation``). A node without one is simulated
and tells what the configuration asks for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from client.charge import charged_sum
from client.device_ledger import DELTA
from client.node import Node
from fedquilt.errors import ConfigError
from fedquilt.privacy.events import DeviceRound, ids_hash
from fedquilt.privacy.keys import kept_secret
from fedquilt.privacy.mechanisms import digest_of, noised
from fedquilt.sharing import SHARES, Share, histograms_of, least
from fedquilt.wire import EvaluateOrder
from fedquilt.wire_evaluation import HistogramReply, Judgement, Withheld

KEPT = "its owner shares no evaluations (fedquilt device --share-evaluation)"
NOT_ASKED = "the configuration asks for none (evaluation.share)"
NOT_ALL = "it tells sums of all of its users or none, and was asked for {asked} of {hosted}"
NO_RANKS = "there are no ranks to make a histogram of"
SEVERAL = "its log holds out several clicks of a user, the configuration's protocol one: sums would not mean the same"
NO_ROOM = "the device's limit of epsilon leaves none of its users room for a histogram"


@dataclass(frozen=True)
class Sharing:
    """``noise``: std of the Gaussian noise on a histogram's entries / most that one user moves all of them (L2).

    ``own``: the node is a device of its own.
    """

    most: Share = "ranks"
    noise: float = 0.0
    own: bool = False

    def __post_init__(self) -> None:
        if self.most not in SHARES:
            raise ConfigError(f"share-evaluation = {self.most!r}: expected one of {', '.join(SHARES)}")
        if not (math.isfinite(self.noise) and self.noise >= 0):
            raise ConfigError(f"evaluation-noise = {self.noise!r}: expected a number that is finite and not negative")
        if self.noise and self.most != "histogram":
            raise ConfigError(
                f"evaluation-noise = {self.noise:g} is for histograms, and share-evaluation is {self.most!r}: share a"
                " histogram, or leave the noise out"
            )


def sharing_of(node_config: Mapping[str, Any]) -> Sharing:
    own = bool(node_config.get("device-dir"))
    most = str(node_config.get("share-evaluation", "none" if own else "ranks"))
    return Sharing(cast(Share, most), float(node_config.get("evaluation-noise", 0)), own)


def judge(node: Node, order: EvaluateOrder, sharing: Sharing) -> Judgement:
    """The node's answer; what is told without noise is remarked on the device's ledger, the noised is charged there."""
    ids_K = node.hosted_U if order.client_ids_K is None else order.client_ids_K
    node.require_hosted(ids_K)
    asked = node.config.evaluation.share
    told = least(asked, sharing.most)
    if told == "none":
        return Withheld(order.round_, order.part, NOT_ASKED if asked == "none" else KEPT)
    if told == "ranks":
        reply = node.evaluate(order)
        _remark(node, order, sharing, f"the ranks of {len(ids_K)} users' held-out clicks")
        return reply
    return _noised(node, order, ids_K, sharing) if sharing.noise else _exact(node, order, ids_K, sharing)


def _exact(node: Node, order: EvaluateOrder, ids_K: np.ndarray, sharing: Sharing) -> Judgement:
    """Two sums that differ by one user would tell that user's ranks."""
    if len(ids_K) < (hosted := len(node.hosted_U)):
        return Withheld(order.round_, order.part, NOT_ALL.format(asked=len(ids_K), hosted=hosted))
    found, users, why = _histograms(node, order)
    if why:
        return Withheld(order.round_, order.part, why)
    _remark(node, order, sharing, f"a rank histogram of {users} users")
    return HistogramReply(order.round_, order.part, users, 0.0, found)


def _noised(node: Node, order: EvaluateOrder, ids_K: np.ndarray, sharing: Sharing) -> Judgement:
    """Users without room in their budget are left out. The same sums again are the same bytes, charged once."""
    part_K = ids_K[node.ledger.admit(_event(node, order, ids_K, sharing.noise), ids_K)]
    if not len(part_K):
        return Withheld(order.round_, order.part, NO_ROOM)
    found, _, why = _histograms(node, replace(order, client_ids_K=part_K))
    if why:
        return Withheld(order.round_, order.part, why)

    def made(ids_K: np.ndarray) -> tuple[HistogramReply, DeviceRound]:
        same = ids_K is part_K or not len(ids_K)
        again = found if same else _histograms(node, replace(order, client_ids_K=ids_K))[0]
        return _noised_sums(node, order, ids_K, sharing, again)

    reply, sent_K = charged_sum(node.ledger, part_K, made)
    return reply if len(sent_K) else Withheld(order.round_, order.part, NO_ROOM)


def _noised_sums(
    node: Node, order: EvaluateOrder, ids_K: np.ndarray, sharing: Sharing, found: dict[str, np.ndarray]
) -> tuple[HistogramReply, DeviceRound]:
    names = sorted(found)
    event = _event(node, order, ids_K, sharing.noise, len(names))
    std = event.noise_multiplier * event.clipping_norm
    source = kept_secret(node.ledger.path.with_suffix(".key"), new=True)
    context = f"{event.run}/{order.round_}/{event.mechanism}/{event.cohort_hash}"
    sums_B = noised(np.concatenate([found[name] for name in names]), std, source, context)
    parts = dict(zip(names, np.split(sums_B, len(names)), strict=True))
    event = replace(event, release_digest=digest_of(sums_B))
    return HistogramReply(order.round_, order.part, 0, std, parts), event


def _histograms(node: Node, order: EvaluateOrder) -> tuple[dict[str, np.ndarray], int, str]:
    """(Histograms, users in them, why there can be none)."""
    arrays = node.evaluate(order).arrays
    if "items" in arrays and node.config.split.protocol.startswith("loo") and arrays["items"][0].size > 1:
        return {}, 0, SEVERAL
    found, users = histograms_of(arrays, max(node.config.evaluation.ks))
    return found, users, "" if found else NO_RANKS


def _event(node: Node, order: EvaluateOrder, ids_K: np.ndarray, noise: float, variants: int = 1) -> DeviceRound:
    """One user's part of all histograms has a norm of at most the square root of their number."""
    privacy = node.config.privacy
    return DeviceRound(
        run=f"{node.config.name}-{order.standing.config_hash}",
        round_=order.round_,
        mechanism=f"evaluation-{order.part}",
        noise_multiplier=noise,
        clipping_norm=math.sqrt(variants),
        cohort_size=len(ids_K),
        cohort_hash=ids_hash(ids_K),
        delta=privacy.delta or DELTA,  # of a run that names none
        neighbours="replace-one" if privacy.mode == "local" else "add-or-remove",
        randomness="secret",
    )


def _remark(node: Node, order: EvaluateOrder, sharing: Sharing, what: str) -> None:
    """On the ledger of a device that keeps one; a simulated node's holds what its runs cost and nothing else."""
    if sharing.own and (node.config.privacy.mode != "none" or node.ledger.limit):
        run = f"{node.config.name}-{order.standing.config_hash}"
        told = (
            f"evaluation on {order.part} clicks: {what} went to the cloud, as the owner allows; no epsilon covers that"
        )
        node.ledger.remark(run, order.round_, told)
