"""``fedquilt doctor``: will it run here, and what to do if not."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import typer

from cli.options import Json, new_table, print_json, print_table

PACKAGES = ("fedquilt", "models", "client", "strategies", "server", "cli")
# What Flower and Ray do unless told not to: phone home, and re-install everything for each `flwr run`.
WANTED_ENVIRONMENT = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
_MIN_MEMORY_GB, _MIN_DISK_GB = 4, 2


@dataclass(frozen=True)
class Check:
    name: str
    state: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def doctor(as_json: Json = False) -> None:
    """Check versions, Flower's traps, folders, cores and memory. Exit code 1 if something must be changed."""
    checks = list(all_checks())
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        table = new_table("fedquilt doctor", "check", "state")
        table.add_column("found", overflow="fold")
        table.add_column("what to do", overflow="fold")
        for check in checks:
            table.add_row(check.name, check.state, check.found, check.advice)
        print_table(table)
    if any(check.state == "fail" for check in checks):
        raise typer.Exit(1)


def all_checks() -> Iterator[Check]:
    yield python_version()
    yield from pinned_versions()
    yield from environment(os.environ.get)
    root = Path(__file__).resolve().parents[1]
    yield folder_name(root)
    yield one_copy(root, Path.cwd())
    yield ray_present()
    yield flower_home(Path(os.environ.get("FLWR_HOME", Path.home() / ".flwr")))
    yield from machine()


def python_version() -> Check:
    fits = sys.version_info >= (3, 11)
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok" if fits else "fail", found, "" if fits else "install Python 3.11 or newer")


def pinned_versions() -> Iterator[Check]:
    """Installed versions against the requirements of our own distribution (extras left out)."""
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    try:
        requirements = [Requirement(line) for line in requires("fedquilt") or ()]
    except PackageNotFoundError:
        yield Check("fedquilt", "warn", "not installed as a distribution", "pip install --editable .")
        return
    for requirement in requirements:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            yield Check(requirement.name, "fail", "absent", f"pip install '{requirement}'")
            continue
        fits = requirement.specifier.contains(found, prereleases=True)
        advice = "" if fits else f"pip install '{requirement}'"
        yield Check(requirement.name, "ok" if fits else "fail", found, advice)


def environment(get: Callable[[str], str | None]) -> Iterator[Check]:
    """Flower's switches; they only matter to `flwr run`, so a wrong one is a warning."""
    for name, wanted in WANTED_ENVIRONMENT.items():
        found = get(name)
        fits = found == wanted
        yield Check(name, "ok" if fits else "warn", found or "unset", "" if fits else f"export {name}={wanted}")


def folder_name(root: Path) -> Check:
    """`flwr build` refuses a project folder with other characters."""
    fits = re.fullmatch(r"[A-Za-z0-9-]+", root.name) is not None
    advice = "" if fits else "for `flwr run`, rename the folder: letters, digits and hyphens only"
    return Check("folder name", "ok" if fits else "warn", root.name, advice)


def one_copy(root: Path, working: Path) -> Check:
    """Ray workers import from the working directory, so another `client/` there would be run instead of ours."""
    origins = {name: _folder_of(name) for name in PACKAGES}
    elsewhere = [f"{name} from {folder}" for name, folder in origins.items() if folder != root]
    if elsewhere:
        return Check("one copy", "fail", "; ".join(elsewhere), f"remove the other copy, or start from {root}")
    shadows = [name for name in PACKAGES if working != root and (working / name).is_dir()]
    if shadows:
        found = f"{working} has its own {', '.join(shadows)}"
        return Check("one copy", "warn", found, "start `flwr run` from another folder")
    return Check("one copy", "ok", str(root))


def _folder_of(package: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).resolve().parents[1] if spec and spec.origin else None


def ray_present() -> Check:
    present = importlib.util.find_spec("ray") is not None
    advice = "" if present else "`flwr run` needs it: pip install 'flwr[simulation]'"
    return Check("ray", "ok" if present else "warn", "present" if present else "absent", advice)


def flower_home(home: Path) -> Check:
    """Flower keeps its connections and its local link's database there."""
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return Check("FLWR_HOME", "ok", str(home))
    except OSError as error:
        return Check("FLWR_HOME", "fail", f"{home}: {error.strerror}", "export FLWR_HOME=<a folder you can write to>")


def machine() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield Check("cores", "ok", str(cores))
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    short = memory_gb < _MIN_MEMORY_GB
    advice = f"below {_MIN_MEMORY_GB} GB: fewer users (data.num_users), smaller cohorts" if short else ""
    yield Check("memory", "warn" if short else "ok", f"{memory_gb:.1f} GB", advice)
    disk_gb = shutil.disk_usage(Path.cwd()).free / 2**30
    short = disk_gb < _MIN_DISK_GB
    yield Check("disk", "warn" if short else "ok", f"{disk_gb:.1f} GB free", "make room for runs/" if short else "")
