"""What a model says of every item: layer by layer, each item projected once a layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fedquilt.config import GraphModelConfig
from fedquilt.graphs.importance import Neighbourhoods
from models.graph_model import GraphModel, build_graph_model

_AT_ONCE = 8192


def build_model(config: GraphModelConfig, in_dim: int, generator: torch.Generator) -> GraphModel:
    return build_graph_model(
        convolution=config.convolution,
        num_layers=config.num_layers,
        in_dim=in_dim,
        hidden=config.hidden,
        dim=config.dim,
        head=config.head,
        skip=config.skip,
        user_map=config.user_map,
        generator=generator,
    )


@torch.no_grad()
def all_vectors(model: GraphModel, values_IF: np.ndarray, neighbours: Neighbourhoods) -> np.ndarray:
    """float32 [I, dim] of all items of a catalogue that fits in memory (``server.embed`` is for those that do not)."""
    device = next(model.parameters()).device
    features_IF = h_IF = torch.as_tensor(values_IF, device=device)
    items_IT = torch.as_tensor(np.maximum(neighbours.items_ST, 0).astype(np.int64), device=device)
    weights_IT = torch.as_tensor(neighbours.weights_ST, device=device)
    was_training = model.training
    model.eval()
    for layer in range(len(model.layers)):
        h_IF = _through(model, layer, h_IF, items_IT, weights_IT)
    parts = zip(h_IF.split(_AT_ONCE), features_IF.split(_AT_ONCE), strict=True)
    vectors_IF = torch.cat([model.finish(*part) for part in parts]).cpu().numpy()
    model.train(was_training)
    return vectors_IF


def _through(model: GraphModel, layer: int, h_IF: Tensor, items_IT: Tensor, weights_IT: Tensor) -> Tensor:
    convolution = model.convolution(layer)
    m_IM = torch.cat([convolution.project(part) for part in h_IF.split(_AT_ONCE)])
    parts = zip(h_IF.split(_AT_ONCE), items_IT.split(_AT_ONCE), weights_IT.split(_AT_ONCE), strict=True)
    return torch.cat([convolution.update(h, convolution.gather_and_pool(m_IM, i, w), w) for h, i, w in parts])


def map_of(model: GraphModel) -> np.ndarray | None:
    """float32 [F, F]: a user's query is mean_j z_j @ map."""
    return None if model.user_map is None else model.user_map.weight.detach().cpu().numpy().T
