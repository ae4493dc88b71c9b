"""The whole configuration of a run: TOML read into frozen models.

Names here are the names in the docs and on the command line. An unknown key fails and names its nearest neighbour.
``load(path, overrides)`` is the only way in; ``to_toml`` is what a run stores.
"""

from __future__ import annotations

import difflib
import hashlib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from fedquilt.defences import DefenceConfig
from fedquilt.device_defences import ScreeningConfig, VoteConfig
from fedquilt.errors import ConfigError
from fedquilt.privacy.cloud_settings import CloudPrivacyConfig
from fedquilt.privacy.settings import PrivacyConfig, unused
from fedquilt.sharing import Share


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Section):
    dataset: str = Field(
        "bazaar", description="name of a loader: bazaar, ml-100k, ml-1m, citeulike-t, amazon-sport-cloth, generic"
    )
    path: str = Field("", description="folder or file of the log; unused by bazaar")
    num_users: int = Field(2000, ge=10, description="bazaar: users to generate")
    num_items: int = Field(1000, ge=20, description="bazaar: items to generate")
    mean_clicks: float = Field(50, ge=5, description="bazaar: clicks a user, on average")
    seed: int = Field(0, description="bazaar: generator seed")
    columns: dict[str, str] = Field(default_factory=dict, description="generic: our name -> the file's column name")


class SplitConfig(_Section):
    protocol: Literal["loo-full", "loo99", "rand-60-20-20"] = "loo-full"
    cloud_share: float = Field(
        0.6,
        ge=0,
        le=1,
        description="share of global time that the cloud may see: 1 = all training clicks (warm), 0 = none (pure)",
    )
    seed: int = Field(0, description="seed of random splits and of drawn negatives")


class GraphConfig(_Section):
    window: int = Field(5, ge=1, description="clicks within this distance in a user's order are co-clicked")
    top_neighbours: int = Field(20, ge=1, description="co-click edges kept per item")
    num_nodes: int = Field(64, ge=2, description="N, nodes of a local subgraph")
    num_clicked: int = Field(
        48, ge=1, description="how many of the N nodes are the user's latest clicks; the rest are their neighbours"
    )
    num_walks: int = Field(64, ge=1, description="random walks per item for visit counts")
    walk_length: int = Field(2, ge=1, description="hops of a walk")


class CloudConfig(_Section):
    dim: int = Field(32, ge=2, description="F, width of item vectors")
    use_ids: bool = True
    use_features: bool = True
    hidden: int = Field(64, ge=2, description="width of the item encoder's hidden layer")
    num_layers: int = Field(2, ge=0, description="graph convolutions")
    epochs: int = Field(60, ge=0)
    batch_size: int = Field(128, ge=1, description="users a step")
    num_contexts: int = Field(4, ge=1, description="moments of a user's history that one step learns from, twice")
    num_targets: int = Field(2, ge=1, description="clicks after each of these moments that are to be predicted")
    learning_rate: float = Field(5e-3, gt=0)
    weight_decay: float = Field(1e-5, ge=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    patience: int = Field(8, ge=1, description="epochs without a better validation score before training stops")


class GraphModelConfig(_Section):
    convolution: str = Field(
        "pinsage", description="pinsage, pinsage-mean, sage-mean, sage-gcn, sage-max-pool, sage-mean-pool, sage-lstm"
    )
    num_layers: int = Field(2, ge=0, description="convolutions, K in the papers; 0 = features through the head only")
    hidden: int = Field(128, ge=1, description="width between layers, and of a layer's pooled neighbours")
    dim: int = Field(64, ge=1, description="F, width of item vectors")
    head: bool = Field(True, description="PinSage's two dense layers after the last convolution")
    skip: bool = Field(False, description="adds a linear map of an item's own features to its vector")
    user_map: bool = Field(
        False,
        description="pairs = users: a linear map makes the user's query of the clicked items' mean vector",
    )
    sampler: Literal["importance", "uniform"] = Field(
        "importance", description="importance: most visited by walks with restart; uniform: any neighbours"
    )
    num_neighbours: int = Field(20, ge=1, description="T, neighbours pooled per item and layer")
    num_walks: int = Field(50, ge=1, description="random walks per item for its visit counts")
    walk_length: int = Field(4, ge=1, description="hops of a walk")
    restart: float = Field(0.3, ge=0, lt=1, description="chance of going back to the seed before a hop")
    window: int = Field(5, ge=1, description="graph: clicks within this distance in a user's order are co-clicked")
    top_edges: int = Field(50, ge=1, description="graph: co-click edges kept per item")
    pairs: Literal["clicks", "walks", "users"] = Field(
        "clicks",
        description="positive pairs: clicks of one user in a row, co-occurrence on walks (GraphSAGE), or many at once: "
        "each of a user's clicks from the others",
    )
    pair_window: int = Field(1, ge=1, description="clicks: distance in a user's order up to which two are a pair")
    pairs_per_epoch: int = Field(0, ge=0, description="pairs (or users) drawn for an epoch; 0 = all")
    epochs: int = Field(10, ge=0)
    batch_size: int = Field(1024, ge=1, description="pairs (or users) a step; 512 to 4,096 in the paper")
    query_users: float = Field(
        0.5, ge=0, le=1, description="pairs = users: share of the loss whose query is the user, not a single click"
    )
    single_queries: int = Field(4, ge=1, description="pairs = users: clicks of a row that ask alone")
    loss: Literal["max-margin", "unsupervised", "softmax"] = "max-margin"
    temperature: float = Field(1.0, gt=0, description="of the softmax loss")
    user_temperature: float = Field(0.1, gt=0, description="of the softmax loss where the query is a user")
    margin: float = Field(0.1, ge=0, description="of the max-margin loss")
    shared_negatives: int = Field(500, ge=1, description="random items that all pairs of a batch are told apart from")
    negative_power: float = Field(
        0.0, ge=0, description="shared negatives are drawn by clicks to this power; 0 = evenly"
    )
    hard_negatives: bool = Field(True, description="also items that are a little related: a window of PPR ranks")
    curriculum: bool = Field(True, description="epoch n has n - 1 hard negatives a pair; off: max_hard_negatives")
    max_hard_negatives: int = Field(6, ge=0, description="hard negatives a pair, at most")
    hard_share: float = Field(
        0.0, ge=0, le=1, description="share of the loss that hard negatives make; 0 = every negative counts alike"
    )
    hard_first: float = Field(0.05, ge=0, le=1, description="where the window begins, as a share of the catalogue")
    hard_last: float = Field(0.2, ge=0, le=1, description="where the window ends, as a share of the catalogue")
    hard_alpha: float = Field(0.3, gt=0, lt=1, description="chance of stopping before a hop, in the PPR of the ranks")
    learning_rate: float = Field(3e-3, gt=0, description="at the end of the linear warm-up, which takes epoch 1")
    decay: float = Field(0.9, gt=0, le=1, description="what an epoch leaves of the learning rate, from epoch 2 on")
    weight_decay: float = Field(0.0, ge=0)
    num_producers: int = Field(1, ge=0, description="processes that make batches; 0 = the training process does")
    prefetch: int = Field(4, ge=1, description="finished batches that a producer may be ahead")
    judge: Literal["user", "item"] = Field(
        "user", description="what ranks all items for a validation click: the user's latest clicks, or the last one"
    )
    user_pooling: Literal["mean", "decay"] = Field(
        "decay", description="weights of a user's clicks in the user's vector"
    )
    user_clicks: int = Field(20, ge=1, description="latest clicks that make a user's vector")
    user_decay: float = Field(0.9, gt=0, le=1, description="decay: weight of a click relative to the one after it")
    patience: int = Field(3, ge=1, description="epochs without a better validation score before training stops")
    vectors: dict[str, str] = Field(
        default_factory=dict, description="given item vectors, name -> .npy in the log's order, or .npz of ids, values"
    )
    missing_features: Literal["error", "mask"] = Field(
        "error", description="items without features: an error that names them, or zeros and a mask column"
    )
    device: str = Field("cpu", description="torch device of the training process, such as cuda")

    @model_validator(mode="after")
    def _users_are_asked_for_in_full(self) -> Self:
        """A setting that would do nothing is refused."""
        if self.pairs == "users" and self.user_clicks < 2:
            raise ValueError('pairs = "users" predicts a click from others: set user_clicks to 2 or more')
        if self.user_map and self.pairs != "users":
            raise ValueError(f'user_map is trained on users: set pairs = "users" (it is "{self.pairs}")')
        if self.user_map and not self.query_users:
            raise ValueError("user_map is trained by users' queries: set query_users above 0")
        return self


class PatchConfig(_Section):
    parts: tuple[str, ...] = Field(
        ("bottleneck", "item-bias", "item-low-rank", "readout"),
        description="bottleneck, item-bias, item-low-rank, readout, convolution (these two: all kernel weights)",
    )
    bottleneck: int = Field(8, ge=1, description="width of a bottleneck patch")
    item_rank: int = Field(16, ge=1, description="rank of the item-low-rank patch")


class MetaConfig(_Section):
    inner_steps: int = Field(1, ge=0)
    inner_learning_rate: float = Field(0.1, gt=0)
    inner_parts: tuple[str, ...] = Field(
        ("bottleneck", "readout"),
        description="parts of the patch that inner steps change and that a personal patch holds;"
        " unless set, those of the default that patch.parts has, or all of patch.parts",
    )
    second_order: bool = True
    support_weight: float = Field(
        0.5, ge=0, lt=1, description="share of the support loss before adaptation in the outer loss; 0 = plain MAML"
    )
    carry: float = Field(
        0.0, ge=0, le=1, description="share of the stored personal patch that inner steps start from; 0 = plain MAML"
    )
    num_contexts: int = Field(2, ge=1, description="subgraphs per user in the support set, and again in the query set")
    num_support: int = Field(2, ge=1, description="S, clicks after a support subgraph that the inner steps learn from")
    num_query: int = Field(2, ge=1, description="Q, later clicks that the outer step learns from")
    num_negatives: int = Field(0, ge=0, description="drawn negatives per click; 0 = softmax over all unseen items")


class FederationConfig(_Section):
    rounds: int = Field(60, ge=0)
    cohort_size: int = Field(500, ge=1, description="users drawn a round")
    num_supernodes: int = Field(
        4, ge=1, description="Flower nodes; each hosts the users whose client_id modulo num_supernodes is its own"
    )
    clipping_norm: float = Field(
        0.5,
        gt=0,
        description="bound on the L2 norm of a user's update, applied on the device and again in the cloud; inf = none",
    )
    upload_entries: int = Field(
        6000, ge=0, description="largest entries of an update that are sent, one to 1.7 bytes each; 0 = all, float32"
    )
    aggregator: str = Field("weighted-mean", description="a name that `fedquilt rules` lists, or package.module:Rule")
    aggregator_options: dict[str, Any] = Field(default_factory=dict)
    pre_rules: tuple[str, ...] = Field(
        (), description="what is done to the updates before the aggregator, in this order; `fedquilt rules` lists them"
    )
    pre_rule_options: dict[str, dict[str, Any]] = Field(default_factory=dict, description="options by pre-rule's name")
    fallback_aggregator: str = Field(
        "median",
        description="takes a round in which the aggregator has too few users for its num_byzantine; empty = an error",
    )
    fallback_options: dict[str, Any] = Field(default_factory=dict)
    weighting: Literal["uniform", "num-examples"] = "uniform"
    max_examples: int = Field(
        1000, ge=1, description="num-examples weighting: a user counts for at most this many examples"
    )
    min_replies: int = Field(1, ge=1, description="usable updates below which a round fails")
    wait_timeout_s: float = Field(120, gt=0, description="how long to wait for nodes before the first round")
    min_supernodes: int = Field(
        0,
        ge=0,
        description="nodes that a run which has begun goes on with, and ends with; 0 = half of num_supernodes",
    )
    round_deadline_s: float = Field(600, gt=0, description="also the TTL of a round's messages")
    evaluate_every: int = Field(
        10, ge=0, description="rounds between evaluations on validation clicks; 0 = only at the end"
    )
    checkpoint_every: int = Field(1, ge=1)


class ServerOptimizerConfig(_Section):
    name: str = Field("adam", description="sgd, momentum, adam, adam-by-part, yogi")
    learning_rate: float = Field(0.02, gt=0)
    decay: float = Field(0.9, ge=0, le=1, description="share of its steps' length lost, linearly, by the last round")
    options: dict[str, Any] = Field(default_factory=dict)


_LATER_EVALUATION = ("share", "held_out")  # fields that a configuration's hash leaves out at their default


class EvaluationConfig(_Section):
    ks: tuple[PositiveInt, ...] = Field((5, 10, 20), min_length=1)
    personal_steps: int = Field(1, ge=0, description="local steps on the device before the personal patch is judged")
    personal_learning_rate: float = Field(0.03, gt=0)
    share: Share = Field(
        "ranks",
        description="what devices are asked to tell of an evaluation: every user's ranks, a histogram of its users',"
        " or none; a real device tells no more than its owner allows",
    )
    held_out: Literal["cloud", "devices"] = Field(
        "cloud",
        description="whose log says which clicks are held out: the cloud's, against which answers are checked; or each"
        " device's own, of which only the form of an answer can be checked",
    )


class AttackConfig(_Section):
    name: str = Field(
        "", description="attack that `fedquilt attack` simulates; a configuration that is deployed names none"
    )
    options: dict[str, Any] = Field(default_factory=dict, description="parameters of the attack")
    malicious: float = Field(0.2, ge=0, lt=1, description="share of the users who are malicious")
    targets: Literal["head", "mid", "tail"] | tuple[int, ...] = Field(
        "tail", description="items to promote or demote: drawn from a group by popularity, or listed"
    )
    num_targets: int = Field(1, ge=1, description="how many targets are drawn")
    trigger_size: int = Field(4, ge=1, description="items of a backdoor's trigger")
    first_round: int = Field(1, ge=1, description="round in which the attack begins")
    last_round: int = Field(0, ge=0, description="round in which it ends; 0 = the last one")


class Config(_Section):
    name: str = "run"
    seed: int = 0
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    graph: GraphConfig = GraphConfig()
    cloud: CloudConfig = CloudConfig()
    graph_model: GraphModelConfig = GraphModelConfig()
    patch: PatchConfig = PatchConfig()
    meta: MetaConfig = MetaConfig()
    federation: FederationConfig = FederationConfig()
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    attack: AttackConfig = AttackConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    cloud_privacy: CloudPrivacyConfig = CloudPrivacyConfig()
    defence: DefenceConfig = DefenceConfig()
    screening: ScreeningConfig = ScreeningConfig()
    vote: VoteConfig = VoteConfig()

    @model_validator(mode="after")
    def _inner_parts_follow_the_patch(self) -> Self:
        """Where only ``patch.parts`` is set, the inner steps change those of the default parts that it has.

        All parts, where it has none of them. What was set by name is left as it is: ``require_inner_parts`` judges it.
        """
        if "inner_parts" in self.meta.model_fields_set:
            return self
        parts = self.patch.parts
        inner = tuple(part for part in self.meta.inner_parts if part in parts) or parts
        if inner != self.meta.inner_parts:
            object.__setattr__(self, "meta", self.meta.model_copy(update={"inner_parts": inner}))
        return self

    def hash(self) -> str:
        """A section that came later and is not used is left out: runs from before there was one can be resumed."""
        later: dict[str, BaseModel] = {"privacy": PrivacyConfig(), "defence": DefenceConfig()}
        later |= {"screening": ScreeningConfig(), "vote": VoteConfig(), "cloud_privacy": CloudPrivacyConfig()}
        without: dict[str, Any] = {name: True for name, default in later.items() if getattr(self, name) == default}
        without.setdefault("privacy", unused(self.privacy))
        without.setdefault("defence", self.defence.unused())
        without["federation"] = {"min_supernodes"} if not self.federation.min_supernodes else set()
        asked = EvaluationConfig()
        without["evaluation"] = {n for n in _LATER_EVALUATION if getattr(self.evaluation, n) == getattr(asked, n)}
        return hashlib.sha256(self.model_dump_json(exclude=without).encode()).hexdigest()[:16]

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(mode="python"))


def load(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Config:
    """Defaults, then the TOML file, then ``key=value`` overrides, whose value is TOML (a bare word is a string)."""
    tree: dict[str, Any] = _read(Path(path)) if path else {}
    for override in overrides:
        _apply(tree, override)
    return parse(tree)


def parse(tree: dict[str, Any]) -> Config:
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(item) for item in error.errors())) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path}: not valid TOML: {error}") from None


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {override!r}: expected key=value, for example federation.rounds=20")
    *parents, last = key.strip().split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is a value, not a section")
    tree[last] = _value(value.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _explain(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    if item["type"] != "extra_forbidden":
        return f"{where}: {item['msg']}; got {item.get('input')!r}"
    *parents, last = item["loc"]
    known = list(_section(parents).model_fields)
    prefix = "".join(f"{p}." for p in parents)
    elsewhere = [f"{section}.{last}" for section in Config.model_fields if str(last) in _keys(section)]
    near = elsewhere or [f"{prefix}{n}" for n in difflib.get_close_matches(str(last), known, n=1, cutoff=0.5)]
    hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
    return f"unknown key '{where}': {hint}"


def _keys(section: str) -> Iterable[str]:
    annotation = Config.model_fields[section].annotation
    return annotation.model_fields if isinstance(annotation, type) and issubclass(annotation, BaseModel) else ()


def _section(parents: Iterable[Any]) -> type[BaseModel]:
    section: type[BaseModel] = Config
    for parent in parents:
        annotation = section.model_fields[str(parent)].annotation
        section = next(
            (t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)), Config
        )
    return section
