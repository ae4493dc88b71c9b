"""Plug-ins by name."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from fedquilt.errors import UnknownNameError
from fedquilt.registry import Registry


@pytest.fixture
def registry(tmp_path, monkeypatch) -> Iterator[Registry]:
    """A package of two modules that register themselves with it, and one that does not."""
    package = tmp_path / "toyrules"
    package.mkdir()
    (package / "__init__.py").write_text("REGISTRY = None\n")
    for name in ("mean", "median"):
        (package / f"{name}.py").write_text(
            f"import toyrules\n@toyrules.REGISTRY.register('{name}')\nclass {name.title()}: pass\n"
        )
    (package / "helper.py").write_text("NOT_A_RULE = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("toy rule", "toyrules")
    import toyrules

    toyrules.REGISTRY = registry
    yield registry
    for name in [name for name in sys.modules if name.split(".")[0] == "toyrules"]:
        del sys.modules[name]


def test_modules_are_imported_on_the_first_look_up_and_not_before(registry):
    assert "toyrules.mean" not in sys.modules
    assert registry["mean"].__name__ == "Mean"
    assert "toyrules.median" in sys.modules


def test_names_are_listed_in_order(registry):
    assert list(registry) == ["mean", "median"]


def test_an_unknown_name_is_told_the_nearest_and_all(registry):
    with pytest.raises(UnknownNameError, match=r"no toy rule named 'medain'; did you mean 'median'\? Known: mean, med"):
        registry["medain"]
    with pytest.raises(UnknownNameError, match=r"no toy rule named 'krum'(?!; did you mean)"):
        registry["krum"]


def test_a_path_reaches_outside_the_package(registry):
    assert registry["collections:OrderedDict"].__name__ == "OrderedDict"


@pytest.mark.parametrize("path", ["no.such.module:Rule", "collections:NoSuchRule", "collections:", ":Rule", ".x:Rule"])
def test_a_path_that_leads_nowhere_is_refused_in_words(registry, path):
    with pytest.raises(UnknownNameError, match=r"toy rule .* cannot be loaded .*expected 'package.module:Name'"):
        registry[path]


def test_one_name_cannot_stand_for_two_things(registry):
    registry.register("mean")(dict)
    with pytest.raises(ValueError, match="toy rule 'mean' is registered twice"):
        registry.register("mean")(list)


def test_a_module_may_be_loaded_again(registry):
    first = registry["mean"]
    again = type("Mean", (), {})
    assert again.__qualname__ == first.__qualname__
    assert registry.register("mean")(again) is again
    assert registry["mean"] is first


def test_our_registries_find_what_ships():
    from fedquilt.graphs.datasets import LOADERS
    from strategies.rules import AGGREGATORS, OPTIMIZERS

    assert {"bazaar", "generic", "ml-100k", "ml-1m", "citeulike-t", "amazon-sport-cloth"} <= set(LOADERS)
    assert {"mean", "weighted-mean"} <= set(AGGREGATORS)
    assert {"sgd", "momentum", "adam", "yogi"} <= set(OPTIMIZERS)
