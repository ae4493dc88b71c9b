"""The cloud's inductive graph model: K convolutions over sampled neighbourhoods, then PinSage's two dense layers.

    z_u = h_u^K                           GraphSAGE (Hamilton et al. 2017, arXiv:1706.02216)
    z_u = G2 ReLU(G1 h_u^K + g)           with the head of PinSage (Ying et al. 2018, arXiv:1806.01973, algorithm 2)

No parameter belongs to an item: an item never seen gets its vector from its features and its neighbours'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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

    Errors: ``DataError`` for a number of blocks or a feature width that does not fit.
    """

    layers: nn.ModuleList

    def __init__(self, layers: Sequence[Convolution], head: nn.Module | None = None):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.head = head

    @property
    def in_dim(self) -> int:
        return self.convolution(0).in_dim

    @property
    def out_dim(self) -> int:
        return self.convolution(-1).out_dim

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
        return self.finish(h_NF)

    def finish(self, h_DF: Tensor) -> Tensor:
        """What follows the last convolution, row by row."""
        return h_DF if self.head is None else self.head(h_DF)

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
) -> GraphModel:
    """Parameters are drawn from ``generator`` alone.

    ``hidden``: width of the messages (PinSage's m, GraphSAGE's pooling and LSTM width); ``dim``: width of every
    layer's output and of the item vectors (PinSage's d).
    Errors: ``ConfigError`` for a width or depth below 1; ``UnknownNameError`` for the convolution.
    """
    sizes = {"num_layers": num_layers, "in_dim": in_dim, "hidden": hidden, "dim": dim}
    if bad := {name: size for name, size in sizes.items() if size < 1}:
        raise ConfigError(f"graph_model: must be at least 1: {', '.join(f'{k} = {v}' for k, v in bad.items())}")
    kind = CONVOLUTIONS[convolution]
    with torch.random.fork_rng(devices=[]):  # torch draws default parameters, which ``_initialise`` replaces
        layers = [kind(dim if place else in_dim, hidden, dim) for place in range(num_layers)]
        dense = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim, bias=False)) if head else None
        model = GraphModel(layers, dense)
    _initialise(model, generator)
    return model


def _initialise(model: nn.Module, generator: torch.Generator) -> None:
    """Dense layers: Glorot uniform (as GraphSAGE's released code), biases 0. LSTM: uniform, +-1 / sqrt(hidden)."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LSTM):
            bound = 1 / math.sqrt(module.hidden_size)
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
