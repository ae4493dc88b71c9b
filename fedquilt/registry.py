"""Plug-ins by name: found with pkgutil inside the app, or as ``"package.module:Name"`` outside it.

Entry points are not used because our own are invisible inside a Flower app bundle.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

from fedquilt.errors import UnknownNameError


class Registry:
    """Names to objects. Modules of ``package`` are imported on the first look-up, so that each registers itself."""

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self._package = package
        self._entries: dict[str, Any] = {}
        self._discovered = False

    def register(self, name: str) -> Callable[[Any], Any]:
        def decorate(entry: Any) -> Any:
            known = self._entries.setdefault(name, entry)
            if known is not entry and known.__qualname__ != entry.__qualname__:
                raise ValueError(f"{self.kind} {name!r} is registered twice: {known!r} and {entry!r}")
            return entry

        return decorate

    def __getitem__(self, name: str) -> Any:
        if ":" in name:
            return self._load(name)
        self._discover()
        if name not in self._entries:
            raise UnknownNameError(self._unknown(name))
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._discover()
        return iter(sorted(self._entries))

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")
        self._discovered = True

    def _load(self, path: str) -> Any:
        module_name, _, attribute = path.partition(":")
        try:
            if not all(part.isidentifier() for part in module_name.split(".")):
                raise ImportError(f"{module_name!r} is not a module's name")
            return getattr(importlib.import_module(module_name), attribute)
        except (ImportError, AttributeError) as error:
            raise UnknownNameError(
                f"{self.kind} {path!r} cannot be loaded ({error}); expected 'package.module:Name'"
            ) from error

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, list(self._entries), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        return (
            f"no {self.kind} named {name!r}{hint} Known: {', '.join(sorted(self._entries))}, or 'package.module:Name'"
        )
