"""What every study and benchmark leaves behind: ``results.json``, and the README table made from it.

    {"headline": {name: number}, "command": …, "commit": …, "date": …, "machine": {…}, "rows": [{…}, …]}

A run writes the file itself, and again after every row if it likes: the write is atomic, and rows of earlier runs stay
unless a new row has the same key. Rows carry the commit and date they were measured at, because merged rows need not
come from one run. Host names and paths outside the checkout are never written.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import torch

from fedquilt.errors import RunError

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


def write_results(
    path: Path,
    new_rows: Iterable[Mapping[str, Any]],
    headline: Callable[[list[Row]], Mapping[str, float]],
    key: Sequence[str] = ("model", "protocol", "seed"),
) -> dict[str, Any]:
    """Merge ``new_rows`` into the file at ``path`` and return what it now holds.

    A new row replaces the old row with the same values under ``key``. ``headline`` sees all rows after the merge and
    returns the headline figures that they support; it leaves out what has not been measured.
    """
    stamp = {"commit": commit(), "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d")}
    about = {"command": command_line(), **stamp, "machine": machine()}
    with _locked(path.parent):
        rows = {_key(row, key): row for row in (read_results(path)["rows"] if path.exists() else [])}
        for row in new_rows:
            rows[_key(row, key)] = {**row, **stamp}
        kept = list(rows.values())
        figures = {name: float(value) for name, value in headline(kept).items()}
        results = {"headline": figures, **about, "rows": kept}
        _write_atomically(path, _dump(results))
    return results


def read_results(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise RunError(f"results {path}: {error.strerror}; run the study first") from None
    except json.JSONDecodeError as error:
        raise RunError(f"results {path}: not valid JSON ({error}); delete the file and run the study again") from None


def machine() -> dict[str, Any]:
    """What a reader needs to judge a time or a number: processor, memory, versions. No names."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
    }


def commit() -> str:
    """The checked-out commit, with ``+changes`` where a source file of ours that is loaded differs from it."""
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "unknown"
    loaded = {getattr(module, "__file__", None) or "" for module in list(sys.modules.values())}
    ours = sorted(name for name in loaded if Path(name).is_relative_to(ROOT) and ".venv" not in Path(name).parts)
    return f"{head}+changes" if ours and _git("status", "--porcelain", "--", *ours) else head


def command_line() -> str:
    """The command to type at the root of the checkout to run this again."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    program = ["-m", spec.name.removesuffix(".__main__")] if spec else [_portable(sys.argv[0])]
    return shlex.join(["python", *program, *(_portable(argument) for argument in sys.argv[1:])])


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A GitHub table: the first column is text, the others numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in (header, rule, *rows))


def origin(measured: Mapping[str, Any]) -> str:
    """Which command wrote a results file, at which commit, and on what machine."""
    machine = measured["machine"]
    return (
        f"Last written by `{measured['command']}` at commit {measured['commit']} on {measured['date']}: "
        f"{machine['cpu']}, {machine['threads']} thread of {machine['cores']} cores, Python {machine['python']}, "
        f"torch {machine['torch']}. Each row in `results.json` has its own commit."
    )


def names_among(known: Mapping[str, Any]) -> Callable[[str], list[str]]:
    """The ``type`` of an argument that lists names separated by commas; an unknown one is told with all known ones."""

    def parse_names(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return names

    return parse_names


def replace_block(readme: Path, name: str, text: str) -> None:
    """Put ``text`` between ``<!-- name:begin -->`` and ``<!-- name:end -->`` in ``readme``."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, opened, rest = readme.read_text().partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise RunError(f"{readme.name}: needs the lines {begin} and {end} around the generated part")
    _write_atomically(readme, f"{before}{begin}\n{text.strip()}\n{end}{after}")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two runs of a study at once do not lose each other's rows."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _key(row: Mapping[str, Any], key: Sequence[str]) -> str:
    return json.dumps([row.get(name) for name in key], sort_keys=True)


def _dump(results: Mapping[str, Any]) -> str:
    """JSON with one row a line, so that a diff shows which measurements changed."""
    rows = ",\n    ".join(json.dumps(row, ensure_ascii=False) for row in results["rows"])
    head = json.dumps({**results, "rows": []}, indent=2, ensure_ascii=False)
    return head.replace('"rows": []', f'"rows": [\n    {rows}\n  ]' if rows else '"rows": []') + "\n"


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + f".{os.getpid()}.partial")
    partial.write_text(text)
    os.replace(partial, path)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _portable(argument: str) -> str:
    """An absolute path as seen from the checkout; beyond the folder that holds the checkout, only its last part."""
    if not os.path.isabs(argument):
        return argument
    seen = os.path.relpath(argument, ROOT)
    return os.path.basename(argument) if seen.startswith(os.path.join("..", "..")) else seen
