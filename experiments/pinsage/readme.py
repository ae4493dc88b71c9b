"""The README's tables, made from ``results.json`` and ``tuning.json``; nobody types a number."""

from __future__ import annotations

from pathlib import Path


def update(readme: Path, path: Path, tuning: Path) -> None:
    """Errors: RunError where there are no results yet."""
