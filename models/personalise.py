"""A user's step on a patch, on devices and on the cloud's own clicks: inner steps on support, gradient from query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fedquilt.config import MetaConfig
from fedquilt.types import Cohort, PatchSpec
from models.kernel import KernelWeights
from models.losses import Examples, softmax_loss
from models.meta import adapt, meta_gradients
from models.patches import names_of


@dataclass(frozen=True)
class Personaliser:
    """Batched over users. ``inner`` tensors are what inner steps change and what a personal patch [U, R] holds."""

    weights: KernelWeights
    spec: PatchSpec
    meta: MetaConfig

    @cached_property
    def inner(self) -> tuple[str, ...]:
        return names_of(self.meta.inner_parts, self.spec)

    @cached_property
    def inner_columns_R(self) -> np.ndarray:
        """Where the inner tensors lie in the flat patch, int64 [R]."""
        places = np.arange(self.spec.num_parameters)
        return np.concatenate([places[self.spec.slices[name]] for name in self.inner] or [places[:0]])

    @property
    def personal_size(self) -> int:
        return len(self.inner_columns_R)

    def outer_step(self, cohort: Cohort, patch_P: np.ndarray, personal_UR: np.ndarray) -> OuterStep:
        """One meta-learning step for every user of the cohort, with client learning rate 1: update = -gradient."""
        meta = self.meta
        examples = Examples.of(cohort, self.weights.num_items)
        support, query = examples[: cohort.num_support], examples[cohort.num_support :]
        start = self._start(patch_P, meta.carry * personal_UR)
        result = meta_gradients(
            lambda patch: softmax_loss(self.weights, support, patch),
            lambda patch: softmax_loss(self.weights, query, patch),
            start,
            self.inner,
            meta.inner_learning_rate,
            meta.inner_steps,
            meta.second_order,
            meta.support_weight,
        )
        updates = torch.empty(len(cohort), self.spec.num_parameters)
        for name, columns in self.spec.slices.items():
            torch.neg(result.gradients[name].reshape(len(cohort), -1), out=updates[:, columns])
        adapted = self._flat([result.adapted[name] for name in self.inner], len(cohort))
        return OuterStep(
            updates_UP=updates.numpy(),
            personal_UR=adapted.numpy() - patch_P[self.inner_columns_R],
            num_examples_U=(support.num_targets + query.num_targets).numpy(),
            support_loss_U=result.support_loss.numpy(),
            query_loss_U=result.query_loss.numpy(),
        )

    def personal(
        self, examples: Examples, patch_P: np.ndarray, personal_UR: np.ndarray, steps: int, learning_rate: float
    ) -> dict[str, Tensor]:
        """Each user's patch after ``steps`` on ``examples``, starting from the patch plus what was carried over."""
        patch = self._start(patch_P, self.meta.carry * personal_UR)
        for _ in range(steps):
            patch = {name: tensor.detach().requires_grad_() for name, tensor in patch.items()}
            patch, _ = adapt(lambda p: softmax_loss(self.weights, examples, p), patch, self.inner, learning_rate, 1)
        return {name: tensor.detach() for name, tensor in patch.items()}

    def shared(self, patch_P: np.ndarray, num_users: int) -> dict[str, Tensor]:
        """The same patch for every user, as tensors [U, *shape] without copies."""
        views = self.spec.views(torch.from_numpy(np.array(patch_P, np.float32)))
        return {name: view.expand(num_users, *view.shape) for name, view in views.items()}

    def _start(self, patch_P: np.ndarray, offset_UR: np.ndarray) -> dict[str, Tensor]:
        patch = self.shared(patch_P, len(offset_UR))
        if offset_UR.any():
            offset = torch.from_numpy(np.ascontiguousarray(offset_UR, np.float32))
            inner = PatchSpec(tuple((name, shape) for name, shape in self.spec.shapes if name in self.inner))
            patch.update({name: patch[name] + view for name, view in inner.views(offset).items()})
        return patch

    @staticmethod
    def _flat(tensors: Sequence[Tensor], num_users: int) -> Tensor:
        return torch.cat([torch.zeros(num_users, 0), *(tensor.reshape(num_users, -1) for tensor in tensors)], dim=1)


@dataclass(frozen=True)
class OuterStep:
    """updates_UP: patch after - before; personal_UR: adapted - shared patch; losses on support before, on query
    after.
    """

    updates_UP: np.ndarray
    personal_UR: np.ndarray
    num_examples_U: np.ndarray
    support_loss_U: np.ndarray
    query_loss_U: np.ndarray
