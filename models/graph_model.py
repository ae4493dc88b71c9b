"""The cloud's inductive graph model: K convolutions over sampled neighbourhoods, then PinSage's two dense layers.

    z_u = h_u^K                           GraphSAGE (Hamilton et al. 2017, arXiv:1706.02216)
    z_u = G2 ReLU(G1 h_u^K + g)           with the head of PinSage (Ying et al. 2018, arXiv:1806.01973, algorithm 2)
    z_u = ... + S x_u                     with a skip connection from the item's own features x_u, linear
    q = U mean_j z_j                      with a user map: the query of somebody who clicked items j

No parameter belongs to an item: an item never seen gets its vector from its features and its neighbours'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedquilt.errors import ConfigError, DataError
from models.convolutions import CONVOLUTIONS
from models.convolutions.base import Convolution
from models.convolutions.sage_lstm import permuted_rows


class LayerBlock(Protocol):
    """One layer's neighbourhoods: places in the layer's N sources [D, T] and weights [D, T], 0 where padded."""

    @property
    def neighbours_DT(self) -> Tensor: ...
    @property
    def weights_DT(self) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class TorchBlock:
    """A ``LayerBlock`` of tensors."""

    neighbours_DT: Tensor
    weights_DT: Tensor

    @classmethod
    def of(cls, block: Any, device: torch.device | str | None = None) -> TorchBlock:
        """From a ``fedquilt.graphs.blocks.Block``, sharing its memory on the CPU."""
        return cls(
            torch.as_tensor(block.neighbours_DT, device=device), torch.as_tensor(block.weights_DT, device=device)
        )


class GraphModel(nn.Module):
    """features [N, in_dim], one block a layer (input layer first) -> vectors [D, out_dim] of the last block's targets.

    Without layers it is the head alone, row by row: the feature-only baseline.
    Errors: ``DataError`` for a number of blocks or a feature width that does not fit.
    """

    def __init__(
        self,
        in_dim: int,
        layers: Sequence[Convolution],
        head: nn.Module | None = None,
        skip: nn.Module | None = None,
        user_map: nn.Linear | None = None,
    ):
        super().__init__()
        self.in_dim = in_dim
        self.layers = nn.ModuleList(layers)
        self.head = head
        self.skip = skip
        self.user_map = user_map

    def convolution(self, layer: int) -> Convolution:
        found = self.layers[layer]
        assert isinstance(found, Convolution)
        return found

    def forward(
        self, features_NF: Tensor, blocks: Sequence[LayerBlock], generator: torch.Generator | None = None
    ) -> Tensor:
        """``generator`` shuffles each row's neighbours for layers that read their order (LSTM); None keeps the rows."""
        self._require(features_NF, blocks)
        h_NF = features_NF
        for place, block in enumerate(blocks):
            layer = self.convolution(place)
            neighbours_DT, weights_DT = block.neighbours_DT, block.weights_DT
            if layer.reads_order and generator is not None:
                neighbours_DT, weights_DT = permuted_rows(neighbours_DT, weights_DT, generator)
            h_NF = layer(h_NF, neighbours_DT, weights_DT)
        return self.finish(h_NF, features_NF[: len(h_NF)])

    def finish(self, h_DF: Tensor, features_DF: Tensor) -> Tensor:
        """What follows the last convolution, row by row; ``features_DF``: the same items' features."""
        z_DF = h_DF if self.head is None else self.head(h_DF)
        return z_DF if self.skip is None else z_DF + self.skip(features_DF)

    def _require(self, features_NF: Tensor, blocks: Sequence[LayerBlock]) -> None:
        if len(blocks) != len(self.layers):
            raise DataError(f"graph model: {len(blocks)} blocks for {len(self.layers)} layers; sample one a layer")
        if features_NF.shape[1:] != (self.in_dim,):
            raise DataError(
                f"graph model: features of shape {tuple(features_NF.shape)}, expected [N, {self.in_dim}]; "
                "give the features that the model was built for"
            )


def build_graph_model(
    *,
    convolution: str,
    num_layers: int,
    in_dim: int,
    hidden: int,
    dim: int,
    head: bool,
    generator: torch.Generator,
    skip: bool = False,
    user_map: bool = False,
) -> GraphModel:
    """Parameters are drawn from ``generator`` alone.

    ``hidden``: width between layers and of the messages (pooling, LSTM); ``dim``: width of the item vectors. Without
    layers the head takes the features themselves.
    Errors: ``ConfigError`` for a width below 1, or neither layers nor head; ``UnknownNameError`` for the convolution.
    """
    _require_sizes(num_layers, in_dim, hidden, dim, head)
    kind = CONVOLUTIONS[convolution]
    widths = [in_dim, *[hidden] * (num_layers - 1), dim] if num_layers else [in_dim]
    with torch.random.fork_rng(devices=[]):  # torch draws default parameters, which ``_initialise`` replaces
        layers = [kind(before, hidden, after) for before, after in pairwise(widths)]
        model = GraphModel(
            in_dim,
            layers,
            head=_dense_layers(widths[-1], dim) if head else None,
            skip=nn.Linear(in_dim, dim, bias=False) if skip else None,
            user_map=nn.Linear(dim, dim, bias=False) if user_map else None,
        )
    _initialise(model, generator)
    return model


def _require_sizes(num_layers: int, in_dim: int, hidden: int, dim: int, head: bool) -> None:
    if in_dim < 1:
        raise ConfigError(f"graph_model: items have {in_dim} features; give item features, or switch log degree on")
    if min(hidden, dim) < 1 or num_layers < 0:
        raise ConfigError(f"graph_model: need hidden, dim >= 1, num_layers >= 0; got {hidden}, {dim}, {num_layers}")
    if not num_layers and not head:
        raise ConfigError("graph_model: num_layers = 0 and head = false leave nothing to train; set one of them")


def _dense_layers(in_dim: int, dim: int) -> nn.Module:
    """G2 ReLU(G1 z + g)."""
    return nn.Sequential(nn.Linear(in_dim, dim), nn.ReLU(), nn.Linear(dim, dim, bias=False))


def _initialise(model: GraphModel, generator: torch.Generator) -> None:
    """Dense layers: Glorot uniform (as GraphSAGE's released code), biases 0. LSTM: uniform, +-1 / sqrt(hidden).

    The skip connection: orthogonal, so that dot products of standardised features are kept (as far as ``dim`` goes), at
    a gain that makes their rows about unit long. The user map: the identity.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            bound = 1 / math.sqrt(module.hidden_size)
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
    if isinstance(model.skip, nn.Linear):
        nn.init.orthogonal_(model.skip.weight, gain=1 / math.sqrt(model.in_dim), generator=generator)
    if model.user_map is not None:
        nn.init.eye_(model.user_map.weight)
