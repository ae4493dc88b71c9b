"""BPR-MF, matrix factorisation with Bayesian personalised ranking (Rendle et al. 2009, arXiv:1205.2618)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from experiments.peers.interface import BestEpoch, Factored, StrictNegatives, Validate
from fedquilt.graphs.log import InteractionLog


class MatrixFactors(nn.Module):
    """score[u, i] = p_u · q_i + b_i."""

    def __init__(self, num_users: int, num_items: int, dim: int, generator: torch.Generator):
        super().__init__()
        self.users_UD = nn.Parameter(0.1 * torch.randn(num_users, dim, generator=generator))
        self.items_ID = nn.Parameter(0.1 * torch.randn(num_items, dim, generator=generator))
        self.bias_I = nn.Parameter(torch.zeros(num_items))

    def scores(self) -> Factored:
        users_UD, items_ID, bias_I = (part.detach().clone() for part in (self.users_UD, self.items_ID, self.bias_I))
        return Factored(users_UD, items_ID, bias_I)


def fit(
    train: InteractionLog,
    validate: Validate,
    seed: int,
    dim: int = 64,
    learning_rate: float = 5e-3,
    regularisation: float = 1e-2,
    batch_size: int = 2048,
    epochs: int = 200,
    patience: int = 10,
    judge_every: int = 1,
) -> Factored:
    """Adam on -log σ(score of a click - score of a strict negative), one fresh negative per click and epoch."""
    generator = torch.Generator().manual_seed(seed)
    model = MatrixFactors(train.num_users, train.num_items, dim, generator)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    negatives = StrictNegatives(train, generator)
    users_C, items_C = torch.from_numpy(train.users_C).long(), torch.from_numpy(train.items_C).long()
    best = BestEpoch(validate, patience)
    for epoch in range(1, epochs + 1):
        negatives_C = negatives.draw(users_C)
        for batch in torch.randperm(len(users_C), generator=generator).split(batch_size):
            optimizer.zero_grad()
            loss(model, users_C[batch], items_C[batch], negatives_C[batch], regularisation).backward()
            optimizer.step()
        if epoch % judge_every == 0 and best.is_over(epoch, model.scores()):
            break
    return best.result()


def loss(model: MatrixFactors, users_B: Tensor, items_B: Tensor, negatives_B: Tensor, regularisation: float) -> Tensor:
    """Mean over the batch of -log σ(difference) + regularisation/2 · the squared norms of the vectors it uses."""
    p_BD, q_BD, n_BD = model.users_UD[users_B], model.items_ID[items_B], model.items_ID[negatives_B]
    difference_B = (p_BD * (q_BD - n_BD)).sum(1) + model.bias_I[items_B] - model.bias_I[negatives_B]
    norms_B = p_BD.square().sum(1) + q_BD.square().sum(1) + n_BD.square().sum(1)
    return (-nn.functional.logsigmoid(difference_B) + 0.5 * regularisation * norms_B).mean()
