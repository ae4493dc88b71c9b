"""SASRec, self-attentive sequential recommendation (Kang and McAuley 2018, arXiv:1808.09781).

Two losses: the paper's (logistic, on the next click and on strict negatives) and the softmax over all items, which
Klenitskiy and Vasilev 2023 (arXiv:2309.07602) found to be what lifts SASRec to its best. Validation chooses.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from experiments.peers.interface import BestEpoch, Fitted, StrictNegatives, Validate
from fedquilt.graphs.log import InteractionLog


class Dropout(nn.Module):
    """torch's own draws its mask four times slower than this on a processor, a quarter of the training time."""

    def __init__(self, probability: float):
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.probability == 0:
            return x
        return x * ((torch.rand(x.shape) >= self.probability) / (1 - self.probability))


class Block(nn.Module):
    """x + attention(LN x), then x + MLP(LN x)."""

    def __init__(self, dim: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), Dropout(dropout), nn.Linear(dim, dim))
        self.dropout = Dropout(dropout)

    def forward(self, x_BLD: Tensor, may_see_B1LL: Tensor) -> Tensor:
        batch, length, dim = x_BLD.shape
        parts = self.query_key_value(self.norms[0](x_BLD)).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(query, key, value, attn_mask=may_see_B1LL)
        x_BLD = x_BLD + self.dropout(self.out(heads.transpose(1, 2).reshape(batch, length, dim)))
        return x_BLD + self.dropout(self.mlp(self.norms[1](x_BLD)))


class SASRec(nn.Module):
    """Item index ``num_items`` is padding, on the left. Scores are dot products with the item embeddings."""

    def __init__(self, num_items: int, dim: int, length: int, num_blocks: int, heads: int, dropout: float):
        super().__init__()
        self.padding = num_items
        self.items = nn.Embedding(num_items + 1, dim, padding_idx=num_items)
        self.positions = nn.Parameter(0.02 * torch.randn(length, dim))
        self.blocks = nn.ModuleList([Block(dim, heads, dropout) for _ in range(num_blocks)])
        self.norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)
        nn.init.normal_(self.items.weight, std=0.02)

    def forward(self, items_BL: Tensor) -> Tensor:
        """A vector after each click, [B, L, D]; it depends on that click and on earlier ones only."""
        length = items_BL.shape[1]
        causal_LL = torch.ones(length, length, dtype=torch.bool).tril()
        real_BL = items_BL.ne(self.padding)
        itself_LL = torch.eye(length, dtype=torch.bool)  # else a padded row attends to nothing: NaN
        may_see_B1LL = ((causal_LL & real_BL[:, None, :]) | itself_LL)[:, None]
        x_BLD = self.dropout(self.items(items_BL) * self.items.embedding_dim**0.5 + self.positions[-length:])
        for block in self.blocks:
            x_BLD = block(x_BLD, may_see_B1LL)
        return self.norm(x_BLD)

    def table(self) -> Tensor:
        return self.items.weight[:-1]


def fit(
    train: InteractionLog,
    validate: Validate,
    seed: int,
    loss: str = "softmax",
    dim: int = 64,
    length: int = 50,
    num_blocks: int = 2,
    heads: int = 1,
    dropout: float = 0.5,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.0,
    num_negatives: int = 1,
    batch_size: int = 64,
    epochs: int = 100,
    patience: int = 10,
) -> Fitted:
    torch.manual_seed(seed)  # initial values and dropout
    generator = torch.Generator().manual_seed(seed)
    model = SASRec(train.num_items, dim, length, num_blocks, heads, dropout)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98))
    negatives = StrictNegatives(train, generator)
    best = BestEpoch(validate, patience)
    for epoch in range(1, epochs + 1):
        model.train()
        for users_B, inputs_BL, targets_BL in windows(train, length, batch_size, generator):
            optimizer.zero_grad()
            if loss == "softmax":
                value = softmax_loss(model, inputs_BL, targets_BL)
            else:
                drawn_BLN = negatives.draw(users_B[:, None, None].expand(-1, length, num_negatives))
                value = logistic_loss(model, inputs_BL, targets_BL, drawn_BLN)
            value.backward()
            optimizer.step()
        if best.is_over(epoch, scores(model, train, length)):
            break
    return best.result()


def windows(
    train: InteractionLog, length: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """One epoch of (users [B], inputs [B, L], targets [B, L] = the clicks after them), padded on the left.

    Each user's clicks are cut into windows at a place drawn anew each epoch, so every click but the first is a target
    once, and long histories are not thrown away.
    """
    users, rows = [], []
    for user in np.unique(train.users_C):
        items = train.items_of(int(user))
        for begin, end in pairwise(_cuts(len(items), length, generator)):
            row = np.full(length + 1, train.num_items)
            row[begin - end - 1 :] = items[begin - 1 : end]
            users.append(user)
            rows.append(row)
    users_W, rows_W = torch.tensor(np.array(users)).long(), torch.tensor(np.stack(rows)).long()
    for batch in torch.randperm(len(rows_W), generator=generator).split(batch_size):
        yield users_W[batch], rows_W[batch, :-1], rows_W[batch, 1:]


def _cuts(num_clicks: int, length: int, generator: torch.Generator) -> list[int]:
    """Rising bounds: between two of them lie the targets of one window. One click gives no target."""
    whole = num_clicks <= length + 1
    last = length if whole else int(torch.randint(1, length + 1, (1,), generator=generator))
    return [1, *reversed(range(num_clicks - last, 1, -length)), num_clicks] if num_clicks > 1 else []


def softmax_loss(model: SASRec, inputs_BL: Tensor, targets_BL: Tensor) -> Tensor:
    """Mean cross-entropy of the next click among all items."""
    asked_BL = inputs_BL.ne(model.padding)
    return functional.cross_entropy(model(inputs_BL)[asked_BL] @ model.table().T, targets_BL[asked_BL])


def logistic_loss(model: SASRec, inputs_BL: Tensor, targets_BL: Tensor, negatives_BLN: Tensor) -> Tensor:
    """Mean over positions of -log σ(next click) - mean over its negatives of log σ(-negative)."""
    asked_BL = inputs_BL.ne(model.padding)
    vectors_MD, table_ID = model(inputs_BL)[asked_BL], model.table()
    positive_M = (vectors_MD * table_ID[targets_BL[asked_BL]]).sum(1)
    negative_MN = torch.einsum("md,mnd->mn", vectors_MD, table_ID[negatives_BLN[asked_BL]])
    return -(functional.logsigmoid(positive_M) + functional.logsigmoid(-negative_MN).mean(1)).mean()


@torch.no_grad()
def scores(model: SASRec, train: InteractionLog, length: int) -> np.ndarray:
    """Every user's scores after the latest ``length`` training clicks, [U, I]."""
    latest_UL = np.full((train.num_users, length), train.num_items)
    for user in range(train.num_users):
        items = train.items_of(user)[-length:]
        latest_UL[user, length - len(items) :] = items
    model.eval()
    chunks = [model(batch)[:, -1] @ model.table().T for batch in torch.from_numpy(latest_UL).split(256)]
    return torch.cat(chunks).numpy()
