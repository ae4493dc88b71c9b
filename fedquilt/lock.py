"""One writing process per folder: a lock of the operating system, which a process that dies cannot leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedquilt.errors import RunError

LOCK = "lock"
_held: dict[Path, int] = {}  # by this process: how many times


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Hold ``folder/lock`` (a POSIX record lock); yields whether this process did not hold it before. It may hold it
    twice.

    The file names the holder's process and stays; what counts is the kernel's lock on it, which ends with the process,
    also on kill -9, and which its children do not inherit. RunError where another process holds it.
    """
    key = folder.resolve()
    _held[key] = _held.get(key, 0) + 1
    try:
        if _held[key] > 1:
            yield False
            return
        descriptor = os.open(key / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(descriptor, folder)
            yield True
        finally:
            os.close(descriptor)
    finally:
        _held[key] -= 1
        if not _held[key]:
            del _held[key]


def _take(descriptor: int, folder: Path) -> None:
    import fcntl  # not on Windows, where devices run but no run folders live

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        raise RunError(
            f"{folder} is being written by process {holder}: wait until it ends, stop it, or start a new run"
        ) from None
    except OSError as error:
        raise RunError(
            f"cannot lock {folder}: {error.strerror}; put runs on a file system with locks (choose another --out)"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)


def drop_leftovers(folder: Path) -> None:
    """Remove ``.name.pid.tmp`` files that writes of processes that are gone left anywhere under ``folder``."""
    for path in folder.rglob(".*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and not is_alive(int(pid)):
            with suppress(FileNotFoundError):
                path.unlink()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True
