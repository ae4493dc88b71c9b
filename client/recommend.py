"""The recommender as a ``LocalTask``: a node's users, their subgraphs, and the ways their held-out clicks are ranked.

Variants: ``stale``, the cloud model over what the cloud has seen of the user; ``base``, the cloud model over the local
subgraph (flag off); ``global``, with the federated patch; ``personal``, with the user's own; ``voted``, if [vote] is
on, what groups of the user's clicks agree on under the federated patch.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from client.held_out import HeldOutClicks
from client.parallel import chunks_of, map_chunks
from client.task import LocalUpdates
from client.vote import Voter
from fedquilt.certificate import vote_scores
from fedquilt.config import Config
from fedquilt.errors import FederationError, SpecMismatchError
from fedquilt.graphs.cohorts import MIN_CLICKS, CohortBuilder
from fedquilt.graphs.datasets import load_split
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.screening import local_graphs
from fedquilt.graphs.splits import Split
from fedquilt.graphs.subgraph import latest_clicks
from fedquilt.metrics import ragged
from fedquilt.types import Cohort, PatchSpec
from models.kernel import Graphs, KernelWeights, all_scores, user_vectors
from models.lift import excess
from models.losses import Examples
from models.patches import patch_spec
from models.personalise import Personaliser

_CHUNK_FLOATS = 8_000_000  # patch rows and scores held at once, about 32 MB each
_MAX_CHUNK = 256  # users; fewer leave threads waiting for the interpreter, more fall out of the cache


def make_task(config: Config, partition_id: int, num_partitions: int) -> RecommendTask:
    split = load_split(config.data, config.split)
    ids_U = np.arange(partition_id, split.train.num_users, num_partitions)
    return RecommendTask(config, split, ids_U)


class RecommendTask:
    """``client_ids_U`` are the users of this node with enough clicks to take part or a held-out click to be judged
    by.
    """

    def __init__(self, config: Config, split: Split, client_ids_U: np.ndarray):
        self.config, self.split = config, split
        wanted_U = np.diff(split.train.offsets) >= MIN_CLICKS
        for held_out in (split.valid, split.test):
            wanted_U[held_out.users_H] = True
        self.client_ids_U = client_ids_U[wanted_U[client_ids_U]].astype(np.int64)
        self._installed: _Installed | None = None
        self._ceiling_I: Tensor | None = None

    def install(self, base: Mapping[str, np.ndarray]) -> None:
        self.__dict__.pop("voter", None)
        self._installed = _Installed(self.config, self.split, base)

    def under(self, ceiling_I: np.ndarray) -> RecommendTask:
        """This task, with lists in which no item has more lift than float32 ``ceiling_I`` [I] (``models/lift.py``).

        What a user's own steps add to the shared patch stays: they are the user's. SpecMismatchError for another length
        or numbers that are not finite.
        """
        num_items = self.split.train.num_items
        if ceiling_I.shape != (num_items,) or not np.isfinite(ceiling_I).all():
            raise SpecMismatchError(f"a ceiling on lift is {num_items} finite numbers, got {ceiling_I.shape}")
        task = copy.copy(self)
        task._ceiling_I = torch.from_numpy(np.array(ceiling_I, np.float32))
        return task

    @property
    def _device(self) -> _Installed:
        if self._installed is None:
            raise FederationError("the node has no base model yet: deploy before training")
        return self._installed

    @property
    def spec(self) -> PatchSpec:
        return self._device.personaliser.spec

    @property
    def personal_size(self) -> int:
        return self._device.personaliser.personal_size

    def clicks(self, client_ids_K: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The users' training clicks: (client ids [C], items [C]), each user's in order."""
        log = self.split.train
        counts_K = np.diff(log.offsets)[client_ids_K]
        first_K = np.cumsum(counts_K) - counts_K
        within_C = np.arange(int(counts_K.sum())) - np.repeat(first_K, counts_K)
        return np.repeat(client_ids_K, counts_K), log.items_C[np.repeat(log.offsets[client_ids_K], counts_K) + within_C]

    def train(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, round_: int, run_seed: int
    ) -> LocalUpdates:
        device, spec = self._device, self.spec
        updates_KP = np.empty((len(client_ids_K), spec.num_parameters), np.float32)
        new_personal_KR = np.empty((len(client_ids_K), self.personal_size), np.float32)
        examples_K = np.empty(len(client_ids_K), np.int64)
        losses: dict[str, np.ndarray] = {name: np.empty(len(client_ids_K)) for name in ("support_loss", "query_loss")}

        def work(rows: slice) -> None:
            cohort = device.data.training_cohort(client_ids_K[rows], round_, run_seed)
            step = device.personaliser.outer_step(cohort, patch_P, personal_KR[rows])
            updates_KP[rows], new_personal_KR[rows] = step.updates_UP, step.personal_UR
            examples_K[rows] = step.num_examples_U
            losses["support_loss"][rows], losses["query_loss"][rows] = step.support_loss_U, step.query_loss_U

        map_chunks(work, self._chunks(len(client_ids_K)))
        return LocalUpdates(updates_KP, examples_K, new_personal_KR, losses)

    def evaluate(
        self, client_ids_K: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray, part: str
    ) -> Mapping[str, np.ndarray]:
        """Rank counts of the held-out clicks, rows padded with item -1; see ``server/evaluate.py`` for the names."""
        parts = map_chunks(
            lambda rows: self._evaluate(client_ids_K[rows], patch_P, personal_KR[rows], part),
            self._chunks(len(client_ids_K)),
        )
        return {name: np.concatenate([p[name] for p in parts]) for name in parts[0]} if parts else {}

    def _chunks(self, count: int) -> list[slice]:
        contexts = 2 * self.config.meta.num_contexts
        floats_a_user = self.spec.num_parameters + contexts * self.split.train.num_items
        return chunks_of(count, int(np.clip(_CHUNK_FLOATS // floats_a_user, 1, _MAX_CHUNK)))

    def _evaluate(self, ids: np.ndarray, patch_P: np.ndarray, personal: np.ndarray, part: str) -> dict[str, np.ndarray]:
        held_out = self._valid if part == "valid" else self._test
        seen_KI = self._seen(ids, part)
        arrays: dict[str, np.ndarray] = {"items": held_out.items(ids)}
        nothing_KI = np.zeros((len(ids), self.split.train.num_items), np.float32)
        canary = held_out.counts("canary", nothing_KI, ids, seen_KI)  # checked by the cloud, never printed
        arrays.update({name: counts for name, counts in canary.items() if not name.startswith("top_")})
        for variant, scores_KI in self.scores(ids, patch_P, personal):
            arrays.update(held_out.counts(variant, scores_KI.numpy(), ids, seen_KI))
        return arrays

    def scores(self, ids: np.ndarray, patch_P: np.ndarray, personal: np.ndarray) -> Iterator[tuple[str, Tensor]]:
        """(variant, scores of every item [K, I]), one after the other."""
        device = self._device
        with torch.no_grad():
            yield "stale", _last_scores(device.weights, device.cloud_data.serving_cohort(ids))
        cohort = device.data.serving_cohort(ids)
        base_KI, shared_KI = self._base_scores(cohort), self._shared_scores(cohort, patch_P)
        yield "base", base_KI
        excess_KI = self._excess(shared_KI, base_KI)
        yield "global", shared_KI - excess_KI
        yield "personal", self._own_scores(cohort, patch_P, personal) - excess_KI
        if self.config.vote.groups:
            yield "voted", torch.from_numpy(vote_scores(self.votes(ids, patch_P), self.voter.order_I))

    def personal_scores(self, ids: np.ndarray, patch_P: np.ndarray, personal_KR: np.ndarray) -> Tensor:
        """[K, I] under each user's own patch, the variant ``personal``: what a device recommends by."""
        cohort = self._device.data.serving_cohort(ids)
        own_KI = self._own_scores(cohort, patch_P, personal_KR)
        if self._ceiling_I is None:
            return own_KI
        return own_KI - self._excess(self._shared_scores(cohort, patch_P), self._base_scores(cohort))

    def _own_scores(self, cohort: Cohort, patch_P: np.ndarray, personal_KR: np.ndarray) -> Tensor:
        weights, evaluation = self._device.weights, self.config.evaluation
        examples = Examples.of(cohort, weights.num_items)[: cohort.num_support]
        steps, learning_rate = evaluation.personal_steps, evaluation.personal_learning_rate
        own = self._device.personaliser.personal(examples, patch_P, personal_KR, steps, learning_rate)
        with torch.no_grad():
            return _last_scores(weights, cohort, own)

    def shared_scores(self, ids: np.ndarray, patch_P: np.ndarray) -> Tensor:
        """[K, I] under the federated patch, the variant ``global``."""
        cohort = self._device.data.serving_cohort(ids)
        shared_KI = self._shared_scores(cohort, patch_P)
        if self._ceiling_I is None:
            return shared_KI
        return shared_KI - self._excess(shared_KI, self._base_scores(cohort))

    def _base_scores(self, cohort: Cohort) -> Tensor:
        with torch.no_grad():
            return _last_scores(self._device.weights, cohort)

    def _shared_scores(self, cohort: Cohort, patch_P: np.ndarray) -> Tensor:
        with torch.no_grad():
            shared = self._device.personaliser.shared(patch_P, len(cohort))
            return _last_scores(self._device.weights, cohort, shared)

    def _excess(self, shared_KI: Tensor, base_KI: Tensor) -> Tensor:
        """[K, I], zeros without a ceiling: scores stay what they are, bit for bit."""
        if self._ceiling_I is None:
            return torch.zeros(())
        return excess(shared_KI, base_KI, self._ceiling_I)

    @cached_property
    def voter(self) -> Voter:
        """Groups of clicks as ``vote`` has them configured; see ``fedquilt/certificate.py``."""
        device = self._device
        return Voter(device.weights, device.data.subgraphs, self.config.graph.num_clicked, self.config.vote)

    def votes(self, ids: np.ndarray, patch_P: np.ndarray) -> np.ndarray:
        """int64 [K, I]: under the federated patch, from whole histories."""
        log = self.split.train
        longest = int(np.diff(log.offsets)[ids].max(initial=1))
        patch = self.spec.views(torch.from_numpy(np.array(patch_P, np.float32)))
        return self.voter.votes(latest_clicks(log, ids, longest), patch)

    @cached_property
    def _valid(self) -> HeldOutClicks:
        return HeldOutClicks(self.split.valid, self.split.train.num_users)

    @cached_property
    def _test(self) -> HeldOutClicks:
        return HeldOutClicks(self.split.test, self.split.train.num_users)

    def _seen(self, ids: np.ndarray, part: str) -> np.ndarray:
        """bool [K, I], what never competes: training clicks, and in the test also validation clicks."""
        train = self.split.train
        seen_KI = np.zeros((len(ids), train.num_items), bool)
        seen_KI[ragged(train.offsets, train.items_C, ids)] = True
        if part == "test":
            items_KM = self._valid.items(ids)
            rows, places = np.nonzero(items_KM >= 0)
            seen_KI[rows, items_KM[rows, places]] = True
        return seen_KI


class _Installed:
    """What a deploy made possible: the kernel, and the users' data with the cloud's neighbours."""

    def __init__(self, config: Config, split: Split, base: Mapping[str, np.ndarray]):
        self.weights = KernelWeights.of(base)
        self.personaliser = Personaliser(self.weights, patch_spec(self.weights, config.patch), config.meta)
        self._builder = local_graphs(config.graph, config.screening, base)
        self._config, self._split = config, split
        self.data = self._local(split.train)

    @cached_property
    def cloud_data(self) -> CohortBuilder:
        return self._local(self._split.cloud)

    def _local(self, log: InteractionLog) -> CohortBuilder:
        return CohortBuilder(log, self._builder, self._config.graph, self._config.meta)


def _last_scores(weights: KernelWeights, cohort: Cohort, patch: Mapping[str, Tensor] | None = None) -> Tensor:
    present = Graphs.of(cohort)[-1:]
    return all_scores(weights, user_vectors(weights, present, patch), patch)[:, 0]
