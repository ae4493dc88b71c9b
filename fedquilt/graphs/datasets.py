"""Logs by name: ``load_log(config)`` finds the loader and reads the log.

One loader a file under ``fedquilt/graphs/loaders/``, each a function ``(DataConfig) -> InteractionLog``.
"""

from __future__ import annotations

from functools import lru_cache

from fedquilt.config import DataConfig, SplitConfig
from fedquilt.graphs.log import InteractionLog
from fedquilt.graphs.splits import Split, split_log
from fedquilt.registry import Registry

LOADERS = Registry("dataset", "fedquilt.graphs.loaders")


def load_log(config: DataConfig) -> InteractionLog:
    """Errors: UnknownNameError for the dataset; DataError naming file, line and what was expected."""
    log: InteractionLog = LOADERS[config.dataset](config)
    return log


def load_split(data: DataConfig, split: SplitConfig) -> Split:
    """The log, split. One copy a process: the cloud and the nodes of a simulation share it."""
    return _split_of(data.model_dump_json(), split.model_dump_json())


@lru_cache(maxsize=2)
def _split_of(data_json: str, split_json: str) -> Split:
    """A cache needs keys that hash, and a section with a dict in it does not."""
    return split_log(load_log(DataConfig.model_validate_json(data_json)), SplitConfig.model_validate_json(split_json))
