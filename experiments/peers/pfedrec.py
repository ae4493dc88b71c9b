"""PFedRec, dual personalisation on user devices (Zhang et al. 2023, arXiv:2301.08143), all clients in one tensor.

A client keeps a linear scorer for good and gets the item table each round. For every batch of its examples it takes a
step on the scorer, then, with a second forward pass, a step on its copy of the table. The server averages the tables
and never sees a scorer. Items are ranked with the client's own tuned table. Defaults are those of the released code.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.peers.interface import BestEpoch, Fitted, StrictNegatives, Validate
from fedquilt.graphs.log import InteractionLog


@dataclass
class Clients:
    """What lies on U devices: scorers (kept) and this round's copies of the item table."""

    weights_UD: Tensor
    bias_U: Tensor
    tables_UID: Tensor

    def scores(self) -> Tensor:
        return torch.bmm(self.tables_UID, self.weights_UD[:, :, None]).squeeze(2) + self.bias_U[:, None]


def fit(
    train: InteractionLog,
    validate: Validate,
    seed: int,
    dim: int = 32,
    learning_rate: float = 0.1,
    table_factor: float = 80.0,
    batch_size: int = 256,
    num_negatives: int = 4,
    rounds: int = 100,
    patience: int = 20,
) -> Fitted:
    """Every client takes part in every round. The table's step is learning_rate · |I| · table_factor."""
    generator = torch.Generator().manual_seed(seed)
    table_ID = torch.randn(train.num_items, dim, generator=generator)
    clients = start(train.num_users, table_ID, generator)
    negatives = StrictNegatives(train, generator)
    best = BestEpoch(validate, patience)
    for round_ in range(1, rounds + 1):
        clients.tables_UID = table_ID.repeat(train.num_users, 1, 1)
        order = shuffled_batches(*examples(train, negatives, num_negatives), batch_size, generator)
        for users_B, items_BE, labels_BE, mask_BE in order:
            local_step(clients, users_B, items_BE, labels_BE, mask_BE, learning_rate, table_factor)
        table_ID = server_mean(clients.tables_UID)
        if best.is_over(round_, clients.scores().numpy()):
            break
    return best.result()


def examples(train: InteractionLog, negatives: StrictNegatives, num_negatives: int) -> tuple[Tensor, Tensor, Tensor]:
    """(users, items, labels) of every client's round: its clicks, and ``num_negatives`` strict negatives for each."""
    users_C, items_C = torch.from_numpy(train.users_C).long(), torch.from_numpy(train.items_C).long()
    drawn_CN = negatives.draw(users_C[:, None].expand(-1, num_negatives))
    users_E = users_C[:, None].expand(-1, 1 + num_negatives).reshape(-1)
    items_E = torch.cat([items_C[:, None], drawn_CN], dim=1).reshape(-1)
    labels_CN = torch.zeros(len(users_C), 1 + num_negatives)
    labels_CN[:, 0] = 1
    return users_E, items_E, labels_CN.reshape(-1)


def start(num_users: int, table_ID: Tensor, generator: torch.Generator) -> Clients:
    """All clients start from one scorer, drawn as torch's Linear draws it: uniform within 1/sqrt(dim)."""
    dim = table_ID.shape[1]
    scorer_D1 = (2 * torch.rand(dim + 1, generator=generator) - 1) / math.sqrt(dim)
    weights_UD = scorer_D1[:dim].repeat(num_users, 1)
    return Clients(weights_UD, scorer_D1[dim].repeat(num_users), table_ID.repeat(num_users, 1, 1))


def server_mean(tables_UID: Tensor) -> Tensor:
    """The whole server: the plain mean of the clients' tables."""
    return tables_UID.mean(dim=0)


def shuffled_batches(
    users_E: Tensor, items_E: Tensor, labels_E: Tensor, batch_size: int, generator: torch.Generator
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Step t of every client at once: (users [B], items [B, E], labels [B, E], mask [B, E]), its examples shuffled.

    ``users_E`` is non-decreasing. A client with fewer batches than others is absent from the later steps.
    """
    num_users = int(users_E.max()) + 1
    shuffled = torch.argsort(users_E + torch.rand(len(users_E), generator=generator, dtype=torch.float64))
    counts_U = torch.bincount(users_E, minlength=num_users)
    starts_U = counts_U.cumsum(0) - counts_U
    batches = []
    for first in range(0, int(counts_U.max()), batch_size):
        users_B = (counts_U > first).nonzero().squeeze(1)
        places_BE = first + torch.arange(batch_size).repeat(len(users_B), 1)
        mask_BE = places_BE < counts_U[users_B, None]
        picked_BE = shuffled[(starts_U[users_B, None] + places_BE).clamp(max=len(users_E) - 1)]
        batches.append((users_B, items_E[picked_BE], labels_E[picked_BE], mask_BE.float()))
    return batches


def local_step(
    clients: Clients,
    users_B: Tensor,
    items_BE: Tensor,
    labels_BE: Tensor,
    mask_BE: Tensor,
    learning_rate: float,
    table_factor: float,
) -> None:
    """One batch on each of B clients: SGD on the scorer, then SGD on the table with the new scorer.

    The loss is the client's mean logistic loss over its batch.
    """
    num_items = clients.tables_UID.shape[1]
    vectors_BED = clients.tables_UID[users_B[:, None], items_BE]
    residual_BE = _residual(clients, vectors_BED, users_B, labels_BE, mask_BE)
    clients.weights_UD[users_B] -= learning_rate * torch.bmm(residual_BE[:, None], vectors_BED).squeeze(1)
    clients.bias_U[users_B] -= learning_rate * residual_BE.sum(1)

    residual_BE = _residual(clients, vectors_BED, users_B, labels_BE, mask_BE)
    step_BED = residual_BE[:, :, None] * clients.weights_UD[users_B, None, :]
    rows = (users_B[:, None] * num_items + items_BE).reshape(-1)
    flat = clients.tables_UID.view(-1, vectors_BED.shape[2])
    flat.index_add_(0, rows, step_BED.reshape(len(rows), -1), alpha=-learning_rate * num_items * table_factor)


def _residual(clients: Clients, vectors_BED: Tensor, users_B: Tensor, labels_BE: Tensor, mask_BE: Tensor) -> Tensor:
    """(σ(score) - label) / batch size: the gradient of the mean logistic loss by the scores."""
    scores_BE = torch.bmm(vectors_BED, clients.weights_UD[users_B, :, None]).squeeze(2) + clients.bias_U[users_B, None]
    return (torch.sigmoid(scores_BE) - labels_BE) * mask_BE / mask_BE.sum(1, keepdim=True)
