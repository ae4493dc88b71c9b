"""FedMF, federated matrix factorisation (Chai et al. 2019, arXiv:1906.05108), all clients in one tensor.

A client keeps its clicks and its vector p_u; the server keeps the item table and sees only the sum of the clients'
item gradients. The paper factorises ratings and encrypts the gradients; here the loss is the logistic one on clicks and
strict negatives, as in the federated comparisons on ml-100k, and nothing is encrypted, which changes no number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.peers.interface import BestEpoch, Fitted, StrictNegatives, Validate, click_matrix
from fedquilt.graphs.log import InteractionLog


def fit(
    train: InteractionLog,
    validate: Validate,
    seed: int,
    dim: int = 32,
    learning_rate: float = 0.05,
    regularisation: float = 3e-2,
    num_negatives: int = 4,
    rounds: int = 300,
    patience: int = 8,
    judge_every: int = 5,
) -> Fitted:
    """One round: every client takes a step on its own vector and sends its item gradient; the server takes a step.

    Adam works on single coordinates, so one optimizer over all users' vectors is each client's own.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors_UD = 0.1 * torch.randn(train.num_users, dim, generator=generator)
    table_ID = 0.1 * torch.randn(train.num_items, dim, generator=generator)
    clients = torch.optim.Adam([vectors_UD], lr=learning_rate)
    server = torch.optim.Adam([table_ID], lr=learning_rate)
    clicks_UI = torch.from_numpy(click_matrix(train))
    negatives = StrictNegatives(train, generator)
    best = BestEpoch(validate, patience)
    for round_ in range(1, rounds + 1):
        drawn_UI = draw(train, negatives, num_negatives)
        vectors_UD.grad, table_ID.grad = gradients(vectors_UD, table_ID, clicks_UI, drawn_UI, regularisation)
        clients.step()
        server.step()
        if round_ % judge_every == 0 and best.is_over(round_, (vectors_UD @ table_ID.T).numpy()):
            break
    return best.result()


def draw(train: InteractionLog, negatives: StrictNegatives, num_negatives: int) -> Tensor:
    """How often each client drew each item as a negative, float32 [U, I]: ``num_negatives`` draws for each click."""
    users_E = torch.from_numpy(train.users_C).long().repeat_interleave(num_negatives)
    size = train.num_users * train.num_items
    drawn = torch.bincount(users_E * train.num_items + negatives.draw(users_E), minlength=size)
    return drawn.view(train.num_users, train.num_items).float()


def gradients(
    vectors_UD: Tensor, table_ID: Tensor, clicks_UI: Tensor, drawn_UI: Tensor, regularisation: float
) -> tuple[Tensor, Tensor]:
    """(each client's gradient for its own vector [U, D], the sum of all clients' item gradients [I, D]).

    A client's loss: sum over its examples of the logistic loss + regularisation/2 (|p|² + |q|²). Row u of the residual
    is client u's own work; the last product is the sum over clients.
    """
    examples_UI = clicks_UI + drawn_UI
    residual_UI = examples_UI * torch.sigmoid(vectors_UD @ table_ID.T) - clicks_UI
    own_UD = residual_UI @ table_ID + regularisation * examples_UI.sum(1, keepdim=True) * vectors_UD
    sent_ID = residual_UI.T @ vectors_UD + regularisation * examples_UI.sum(0)[:, None] * table_ID
    return own_UD, sent_ID
