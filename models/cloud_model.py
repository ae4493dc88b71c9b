"""The cloud's global model: item encoder and global graph, trained together with the kernel that devices will hold."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedquilt.config import CloudConfig
from fedquilt.graphs.assemble import standardised
from models.item_encoder import ItemEncoder
from models.kernel import KernelWeights, initial_kernel


class CloudModel(nn.Module):
    """``weights()`` runs the encoder over the whole catalogue and gives what a device would be sent."""

    def __init__(self, encoder: ItemEncoder, neighbours: Tensor, num_items: int, dim: int, num_recencies: int):
        super().__init__()
        self.encoder = encoder
        self.register_buffer("neighbours", neighbours)
        self.item_bias = nn.Parameter(torch.zeros(num_items))
        self.kernel = nn.ParameterDict(initial_kernel(dim, num_recencies))

    def weights(self) -> KernelWeights:
        return KernelWeights(self.encoder(self.neighbours), self.item_bias, **dict(self.kernel.items()))


def build_cloud_model(
    config: CloudConfig,
    num_items: int,
    num_recencies: int,
    features_IF: np.ndarray | None,
    neighbour_items_IT: np.ndarray,
    neighbour_weights_IT: np.ndarray,
) -> CloudModel:
    """Parameters are drawn from torch's global generator: seed it first."""
    features = torch.from_numpy(standardised(features_IF)) if config.use_features and features_IF is not None else None
    use_ids = config.use_ids or features is None  # without features only ids can tell items apart
    encoder = ItemEncoder(num_items, config.dim, features, use_ids, config.hidden, config.num_layers, config.dropout)
    neighbours = importance_matrix(neighbour_items_IT, neighbour_weights_IT)
    return CloudModel(encoder, neighbours, num_items, config.dim, num_recencies)


def importance_matrix(neighbour_items_IT: np.ndarray, neighbour_weights_IT: np.ndarray) -> Tensor:
    """Sparse [I, I] from an importance table; item -1 is padding."""
    rows, columns = np.nonzero(neighbour_items_IT >= 0)
    index = torch.from_numpy(np.stack([rows, neighbour_items_IT[rows, columns].astype(np.int64)]))
    values = torch.from_numpy(neighbour_weights_IT[rows, columns].astype(np.float32))
    size = len(neighbour_items_IT)
    return torch.sparse_coo_tensor(index, values, (size, size), check_invariants=True).coalesce()


def feature_vectors(features_IF: np.ndarray | None, num_items: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Item vectors before any click is seen, float32 [I, dim]: the leading principal components of the features.

    Components are scaled to one common standard deviation, .3, as small as the vectors that training starts from
    elsewhere; missing dimensions are zero. Without features: Gaussian noise of standard deviation .1.
    """
    if features_IF is None:
        return rng.normal(0, 0.1, (num_items, dim)).astype(np.float32)
    left, strength, _ = np.linalg.svd(features_IF - features_IF.mean(0), full_matrices=False)
    kept = left[:, : min(dim, int((strength > 1e-6 * strength.max(initial=1e-12)).sum()))]
    vectors_IF = np.zeros((num_items, dim), np.float32)
    vectors_IF[:, : kept.shape[1]] = 0.3 * kept * np.sqrt(num_items)
    return vectors_IF
