"""The generated log, the default: needs no download."""

from __future__ import annotations

from fedquilt.config import DataConfig
from fedquilt.graphs.bazaar import Bazaar, generate
from fedquilt.graphs.datasets import LOADERS
from fedquilt.graphs.log import InteractionLog


@LOADERS.register("bazaar")
def load(config: DataConfig) -> InteractionLog:
    return generate(Bazaar(config.num_users, config.num_items, config.mean_clicks, config.seed))
