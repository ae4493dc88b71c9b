"""Loss of a user's targets given their subgraphs: softmax against items that the user has not clicked."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fedquilt.types import Cohort
from models.kernel import Graphs, KernelWeights, PatchTensors, all_scores, scores_of, user_vectors

_FAR = -1e9


@dataclass(frozen=True)
class Examples:
    """Subgraphs with their targets [U, G, T] and what competes with these: unseen items, or drawn negatives."""

    graphs: Graphs
    targets: Tensor
    target_mask: Tensor
    seen: Tensor | None
    negatives: Tensor | None

    @classmethod
    def of(cls, cohort: Cohort, num_items: int) -> Examples:
        targets = torch.from_numpy(cohort.targets_UGT).long()
        negatives = None if cohort.negatives_UGTM is None else torch.from_numpy(cohort.negatives_UGTM).long()
        seen = seen_mask(cohort, num_items) if negatives is None else None
        return cls(Graphs.of(cohort), targets.clamp(min=0), targets >= 0, seen, negatives)

    def __getitem__(self, graphs: slice) -> Examples:
        negatives = None if self.negatives is None else self.negatives[:, graphs]
        return Examples(self.graphs[graphs], self.targets[:, graphs], self.target_mask[:, graphs], self.seen, negatives)

    @property
    def num_targets(self) -> Tensor:
        """[U]."""
        return self.target_mask.sum((1, 2))


def seen_mask(cohort: Cohort, num_items: int) -> Tensor:
    """bool [U, I]: True where the user has clicked the item in training."""
    rows, items = (torch.from_numpy(part).long() for part in cohort.seen)
    mask = torch.zeros(len(cohort), num_items, dtype=torch.bool)
    mask[rows, items] = True
    return mask


def softmax_loss(weights: KernelWeights, examples: Examples, patch: PatchTensors | None = None) -> Tensor:
    """-> [U]: mean over a user's targets t of -log( e^{s_t} / (e^{s_t} + sum_j e^{s_j}) ), 0 for a user without
    targets.

    j runs over all items that the user has not clicked in training, or over the target's drawn negatives (plain
    sampled softmax, without a correction for the proposal distribution).
    """
    users = user_vectors(weights, examples.graphs, patch)
    if examples.negatives is None:
        scores = all_scores(weights, users, patch)
        positive = scores.gather(2, examples.targets)
        rest = torch.where(_required(examples.seen)[:, None], _FAR, scores).logsumexp(2, keepdim=True)
    else:
        positive, rest = _against_drawn(weights, examples, users, patch)
    loss = torch.nn.functional.softplus(rest - positive) * examples.target_mask
    return loss.sum((1, 2)) / examples.num_targets.clamp(min=1)


def _against_drawn(
    weights: KernelWeights, examples: Examples, users: Tensor, patch: PatchTensors | None
) -> tuple[Tensor, Tensor]:
    """Scores of the targets and log-sum-exp of their negatives, both [U, G, T]."""
    negatives = _required(examples.negatives)
    items = torch.cat([examples.targets[..., None], negatives.clamp(min=0)], dim=3)
    scores = scores_of(weights, users, items.flatten(2), patch).view_as(items)
    return scores[..., 0], torch.where(negatives < 0, _FAR, scores[..., 1:]).logsumexp(3)


def _required(tensor: Tensor | None) -> Tensor:
    assert tensor is not None  # ``Examples.of`` fills exactly one of seen and negatives
    return tensor
