"""A node as it stands after a deploy: its task, its users' store, and where both lie on disk.

Any process can serve a node: what a deploy brought is on disk, by hash, and a process that does not hold the node yet
(another Ray actor, a restarted device) builds it from there. Built nodes are kept for the next message.
"""

from __future__ import annotations

import tomllib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from client.charge import charged, charged_by_norms, least
from client.device_ledger import DELTA, DeviceLedger, device_event
from client.noise import private_reply
from client.privatise import OVER_LIMIT, privatise
from client.promises import require_clipping, require_round_noise, require_terms
from client.store import PersonalStore
from client.task import LocalTask, LocalUpdates, TaskFactory, under
from fedquilt.code import code_hash
from fedquilt.config import Config, parse
from fedquilt.durable import replace_file
from fedquilt.errors import ConfigError, FederationError, FedquiltError, PrivacyError, SpecMismatchError
from fedquilt.privacy.device_events import DeviceRound
from fedquilt.privacy.keys import kept_secret
from fedquilt.privacy.randomness import Simulated, Source
from fedquilt.privacy.terms import Terms
from fedquilt.wire import (
    DeployOrder,
    DeployReply,
    EvaluateOrder,
    EvaluateReply,
    Standing,
    TrainOrder,
    TrainReply,
    arrays_hash,
)
from fedquilt.wire_shares import SharesReply

STATE = "fedquilt"  # record in Flower's per-node state that names a simulated node's folder
MAX_DEPLOYMENTS = 2  # kept in one process; an older one is built again from disk when it is next asked


class NotDeployedError(FedquiltError):
    """A node is asked to work on a deployment that it does not hold."""


@dataclass(frozen=True)
class Node:
    """One partition's users, ready to work. All arrays of an order have been checked by ``fedquilt.wire``.

    ``own``: it has a folder of its own, so it is somebody's device and no part of a simulation. ``by_clip``: users are
    charged by the clipping norm whatever is deployed, as the limit is the owner's, who did not say otherwise.
    """

    task: LocalTask
    store: PersonalStore
    config: Config
    ledger: DeviceLedger
    own: bool = False
    by_clip: bool = False

    @cached_property
    def hosted_U(self) -> np.ndarray:
        return np.sort(np.asarray(self.task.client_ids_U, np.int64))

    def train(self, order: TrainOrder) -> TrainReply | SharesReply:
        self.require_hosted(order.client_ids_K)
        self._require_patch(order.patch_P, order.standing.spec_hash)
        if self.config.privacy.mode != "none" or self.ledger.limit:
            return self._train_privately(order, self.terms(order.terms))
        local = self._work(order, order.client_ids_K)
        federation = self.config.federation
        reply, taking_part_K = privatise(
            local,
            order.client_ids_K,
            federation.clipping_norm,
            order.round_,
            order.standing.spec_hash,
            federation.upload_entries,
        )
        self._keep_personal(order, order.client_ids_K, local, taking_part_K)
        return reply

    def _train_privately(self, order: TrainOrder, terms: Terms) -> TrainReply | SharesReply:
        """Users with room in their budget work; what they send is on the device's ledger before it leaves.

        By norms, or where a round is asked again and the same bytes cost nothing, the price is known after the work.
        Users without room for it are left out as if they had done none.
        """
        all_K, dimension = order.client_ids_K, len(order.patch_P)
        by_norms = self.config.privacy.device_norms and not self.by_clip
        require_clipping(terms, self.config)
        require_round_noise(terms, self.config.privacy, dimension)

        def event_of(ids_K: np.ndarray) -> DeviceRound:
            return device_event(terms, order.round_, ids_K, dimension)

        first = event_of(all_K)
        ids_K = all_K[self.ledger.admit(least(first) if by_norms else first, all_K)]
        local = self._work(order, ids_K)
        sent = private_reply(
            local,
            ids_K,
            terms,
            order.round_,
            order.standing.spec_hash,
            self.config.federation.upload_entries,
            self.source(terms),
            first.cohort_hash,
        )
        sent = (charged_by_norms if by_norms else charged)(self.ledger, sent, event_of)
        self._keep_personal(order, ids_K, local, sent.taking_part_K & np.isin(ids_K, sent.reply.client_ids_K))
        return _refusing(sent.reply, all_K)

    def terms(self, text: str) -> Terms:
        """What an order says of the noise; PrivacyError where it is not what the deployment and the device allow."""
        mode = self.config.privacy.mode
        if not text:
            raise PrivacyError(
                f"the order says nothing of the noise that covers it, and privacy.mode is {mode!r}"
                + (f" with a limit of epsilon {self.ledger.limit:g} on this device" if self.ledger.limit else "")
                + ": nothing is sent"
            )
        terms = Terms.from_json(text)
        require_terms(terms, self.config.privacy, self.own)
        return terms

    def source(self, terms: Terms) -> Source:
        """Of the device's own noise: no other device, and not the cloud, can draw it again from a secret key."""
        if terms.randomness == "simulated":
            return Simulated(self.config.seed)
        return kept_secret(self.ledger.path.with_suffix(".key"), new=True)

    def _work(self, order: TrainOrder, ids_K: np.ndarray) -> LocalUpdates:
        personal_KR = self.store.read(ids_K, before_round=order.round_)
        return self.task.train(ids_K, order.patch_P, personal_KR, order.round_, self.config.seed)

    def _keep_personal(
        self, order: TrainOrder, ids_K: np.ndarray, local: LocalUpdates, taking_part_K: np.ndarray
    ) -> None:
        if local.personal_KR is not None:
            rows_KR = local.personal_KR[taking_part_K]
            self.store.write(ids_K[taking_part_K], order.round_, rows_KR, order.settled_round)

    def evaluate(self, order: EvaluateOrder) -> EvaluateReply:
        ids_K = self.hosted_U if order.client_ids_K is None else order.client_ids_K
        self.require_hosted(ids_K)
        self._require_patch(order.patch_P, order.standing.spec_hash)
        personal_KR = self.store.read(ids_K, before_round=order.round_ + 1)
        task = self.task if order.ceiling_I is None else under(self.task, order.ceiling_I)
        arrays = task.evaluate(ids_K, order.patch_P, personal_KR, order.part)
        return EvaluateReply(order.round_, order.part, ids_K, arrays)

    def require_hosted(self, ids_K: np.ndarray) -> None:
        if not len(self.hosted_U):
            raise NotDeployedError("this node hosts no users")
        if len(np.unique(ids_K)) < len(ids_K):
            raise FederationError("the order names a client twice: each sends one row and is charged for one")
        nearest_K = self.hosted_U[np.searchsorted(self.hosted_U, ids_K).clip(max=len(self.hosted_U) - 1)]
        strangers = ids_K[nearest_K != ids_K]
        if strangers.size:
            raise NotDeployedError(
                f"this node does not host client {strangers[0]} ({strangers.size} such in the order)"
            )

    def _require_patch(self, patch_P: np.ndarray, spec_hash: str) -> None:
        self.task.spec.require(spec_hash, "order to a node")
        if patch_P.shape != (self.task.spec.num_parameters,):
            raise SpecMismatchError(f"patch has {patch_P.size} parameters, its spec {self.task.spec.num_parameters}")


def _refusing(reply: TrainReply | SharesReply, all_K: np.ndarray) -> TrainReply | SharesReply:
    """The users whom the reply does not name are over their limit; in the order asked, whenever it was found out."""
    refused_D = all_K[~np.isin(all_K, np.concatenate([reply.client_ids_K, reply.declined_D]))]
    return replace(
        reply,
        declined_D=np.concatenate([reply.declined_D, refused_D]),
        declined_why_D=np.concatenate([reply.declined_why_D, np.full(len(refused_D), OVER_LIMIT)]),
    )


@dataclass
class Deployment:
    """What one deploy order brought, and the nodes of it that this process has built."""

    config: Config
    base: Mapping[str, np.ndarray]
    nodes: dict[int, Node] = field(default_factory=dict)


# By (factory, folder, config hash, base hash). Of the process, not of the app: Ray pickles the app with every message.
_deployments: OrderedDict[tuple[TaskFactory, Path, str, str], Deployment] = OrderedDict()


def deploy(order: DeployOrder, context: Context, factory: TaskFactory) -> DeployReply:
    """Check what came, store it, build the node. A mismatch is refused before anything is stored."""
    if order.code_hash != code_hash():
        raise SpecMismatchError(
            f"the cloud runs code {order.code_hash}, this node {code_hash()}: install one version on both sides,"
            " and start the SuperLink where no other `client` or `models` folder can be imported first"
        )
    config = _parse_config(order.config_toml, order.config_hash)
    if arrays_hash(order.base) != order.base_hash:
        raise SpecMismatchError(f"base arrays hash to {arrays_hash(order.base)}, the order says {order.base_hash}")
    context.state[STATE] = ConfigRecord({"folder": order.folder})
    folder = _device_folder(context)
    _keep(_config_path(folder, order.config_hash), order.config_toml.encode())
    _keep(_base_path(folder, order.base_hash), save_tensors(_contiguous(order.base)))
    held = _hold((factory, folder, order.config_hash, order.base_hash), Deployment(config, _readonly(order.base)))
    node = _node(held, context, factory, folder)
    node.task.spec.require(order.spec.hash, "deploy")
    return DeployReply(node.hosted_U, _partition(context)[0], node.task.spec.hash, code_hash())


def node_for(standing: Standing, context: Context, factory: TaskFactory) -> Node:
    """The node that an order is for, from memory or from disk."""
    folder = _device_folder(context)
    key = (factory, folder, standing.config_hash, standing.base_hash)
    held = _deployments.get(key) or _hold(key, _from_disk(folder, standing))
    _deployments.move_to_end(key)
    return _node(held, context, factory, folder)


def _node(held: Deployment, context: Context, factory: TaskFactory, folder: Path) -> Node:
    partition_id, num_partitions = _partition(context)
    if partition_id not in held.nodes:
        task = factory(held.config, partition_id, num_partitions)
        task.install(held.base)
        store = PersonalStore(folder, partition_id, task.spec.hash, task.personal_size)
        ledger = _ledger(folder / f"privacy-{partition_id:05d}.sqlite", held.config, context)
        own = bool(context.node_config.get("device-dir"))
        held.nodes[partition_id] = Node(task, store, held.config, ledger, own, _by_clip(context))
    return held.nodes[partition_id]


def _ledger(path: Path, config: Config, context: Context) -> DeviceLedger:
    """An owner's own limit is counted at a delta that no deployment can loosen."""
    epsilon, delta = (float(context.node_config.get(name, 0)) for name in ("device-epsilon", "device-delta"))
    deployed = config.privacy.device_delta if not epsilon else 0.0
    return DeviceLedger(path, epsilon or config.privacy.device_epsilon, delta or deployed or DELTA, delta or 1.0)


def _by_clip(context: Context) -> bool:
    """An owner's own limit is charged by norms only if the owner says so (``fedquilt device --charge-by-norms``)."""
    limit, norms = (context.node_config.get(name, 0) for name in ("device-epsilon", "device-norms"))
    return bool(float(limit)) and not norms


def _hold(key: tuple[TaskFactory, Path, str, str], deployment: Deployment) -> Deployment:
    while len(_deployments) >= MAX_DEPLOYMENTS and key not in _deployments:
        _deployments.popitem(last=False)
    return _deployments.setdefault(key, deployment)


def _partition(context: Context) -> tuple[int, int]:
    try:
        return int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    except KeyError as missing:
        raise ConfigError(
            f"this node's configuration lacks {missing}: start it with --node-config 'partition-id=0 num-partitions=1'"
        ) from None


def _device_folder(context: Context) -> Path:
    """A device's own ``device-dir`` wins; only a node without one (a simulated one) takes what the cloud deployed."""
    own = str(context.node_config.get("device-dir", ""))
    if own:
        return Path(own)
    if STATE not in context.state:
        raise NotDeployedError("this node holds no deployment; deploy first")
    folder = str(context.state[STATE]["folder"])
    if not folder:
        raise ConfigError("this node has no folder: start it with --node-config 'device-dir=\"/path\"'")
    return Path(folder)


def _config_path(folder: Path, config_hash: str) -> Path:
    return folder / f"config-{_plain(config_hash)}.toml"


def _base_path(folder: Path, base_hash: str) -> Path:
    return folder / f"base-{_plain(base_hash)}.safetensors"


def _plain(hash_: str) -> str:
    """A hash becomes part of a file's name, and it comes from outside."""
    if not (hash_.isalnum() and len(hash_) <= 64):
        raise SpecMismatchError(f"{hash_[:80]!r} is not a hash")
    return hash_


def _keep(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_bytes() != content:
        replace_file(path, content)


def _from_disk(folder: Path, standing: Standing) -> Deployment:
    try:
        toml = _config_path(folder, standing.config_hash).read_text()
        base = load_tensors(_base_path(folder, standing.base_hash).read_bytes())
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise NotDeployedError(
            f"this node holds no deployment {standing.config_hash}/{standing.base_hash} ({error}); deploy first"
        ) from None
    config = _parse_config(toml, standing.config_hash)
    if arrays_hash(base) != standing.base_hash:
        raise NotDeployedError(f"base arrays in {folder} hash to {arrays_hash(base)}: damaged; deploy again")
    return Deployment(config, _readonly(base))


def _parse_config(toml: str, expected_hash: str) -> Config:
    try:
        config = parse(tomllib.loads(toml))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"deployed configuration is not valid TOML: {error}") from None
    if config.hash() != expected_hash:
        raise SpecMismatchError(f"deployed configuration hashes to {config.hash()}, the order says {expected_hash}")
    if config.attack.name:
        raise ConfigError(f"the cloud deploys a configuration with attack {config.attack.name!r}: refused")
    return config


def _contiguous(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()}


def _readonly(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    views = {name: array.view() for name, array in arrays.items()}
    for view in views.values():
        view.flags.writeable = False
    return views
