"""Logs by name: ``load_log(config)`` finds the loader and reads the log.

One loader a file under ``fedquilt/graphs/loaders/``, each a function ``(DataConfig) -> InteractionLog``.
"""

from __future__ import annotations

from fedquilt.config import DataConfig
from fedquilt.graphs.log import InteractionLog
from fedquilt.registry import Registry

LOADERS = Registry("dataset", "fedquilt.graphs.loaders")


def load_log(config: DataConfig) -> InteractionLog:
    """Errors: UnknownNameError for the dataset; DataError naming file, line and what was expected."""
    log: InteractionLog = LOADERS[config.dataset](config)
    return log
