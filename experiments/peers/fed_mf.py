"""FedMF, federated matrix factorisation (Chai et al. 2019, arXiv:1906.05108), all clients in one tensor.

A client keeps its clicks and its vector p_u; the server keeps the item table and sees only the sum of the clients'
item gradients. The paper factorises ratings and encrypts the gradients; here the loss is the logistic one on clicks and
strict negatives, as in the federated comparisons on ml-100k, and nothing is encrypted, which changes no number.
"""

from __future__ import annotations

import torch
from torch import Tensor

from experiments.peers.interface import BestEpoch, Fitted, StrictNegatives, Validate
from fedquilt.graphs.log import InteractionLog


def fit(
    train: InteractionLog,
    validate: Validate,
    seed: int,
    dim: int = 64,
    learning_rate: float = 0.02,
    regularisation: float = 1e-2,
    num_negatives: int = 4,
    rounds: int = 400,
    patience: int = 10,
    judge_every: int = 4,
) -> Fitted:
    """One round: every client takes a step on its own vector and sends its item gradient; the server takes a step.

    Adam works on single coordinates, so one optimizer over all users' vectors is each client's own.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors_UD = 0.1 * torch.randn(train.num_users, dim, generator=generator)
    table_ID = 0.1 * torch.randn(train.num_items, dim, generator=generator)
    clients = torch.optim.Adam([vectors_UD], lr=learning_rate)
    server = torch.optim.Adam([table_ID], lr=learning_rate)
    negatives = StrictNegatives(train, generator)
    best = BestEpoch(validate, patience)
    for round_ in range(1, rounds + 1):
        users_E, items_E, labels_E = examples(train, negatives, num_negatives)
        vectors_UD.grad, table_ID.grad = gradients(vectors_UD, table_ID, users_E, items_E, labels_E, regularisation)
        clients.step()
        server.step()
        if round_ % judge_every == 0 and best.is_over(round_, (vectors_UD @ table_ID.T).numpy()):
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


def gradients(
    vectors_UD: Tensor, table_ID: Tensor, users_E: Tensor, items_E: Tensor, labels_E: Tensor, regularisation: float
) -> tuple[Tensor, Tensor]:
    """(each client's gradient for its own vector [U, D], the sum of all clients' item gradients [I, D]).

    A client's loss: sum over its examples of the logistic loss + regularisation/2 (|p|² + |q|²).
    """
    p_ED, q_ED = vectors_UD[users_E], table_ID[items_E]
    residual_E1 = (torch.sigmoid((p_ED * q_ED).sum(1)) - labels_E)[:, None]
    own_UD = torch.zeros_like(vectors_UD).index_add_(0, users_E, residual_E1 * q_ED + regularisation * p_ED)
    sent_ID = torch.zeros_like(table_ID).index_add_(0, items_E, residual_E1 * p_ED + regularisation * q_ED)
    return own_UD, sent_ID
