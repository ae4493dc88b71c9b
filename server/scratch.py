"""A matrix [I, F] of float32 between two steps of a long computation: one file, written span by span by any process.

    rows.f32        raw, so that spans of a multiple of 1,024 values begin on a page
    00007-5f0c….done  span 7 is written; its name carries the hash of the span's bytes

One file and not one a span, because a join reads rows from anywhere, and a product over one mapped matrix is several
times as fast as one over rows picked from many. Any process on a shared disk may write any span; the mark is made after
the bytes, and a reader who goes on from an interrupted run checks the bytes against it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_ROWS = "rows.f32"


@dataclass(frozen=True)
class Scratch:
    """``folder`` holds the file and the marks; ``shape`` is [I, F]."""

    folder: Path
    shape: tuple[int, int]

    def make(self) -> None:
        """The empty file of its full length; what is already there stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _ROWS).open("ab") as file:
            file.truncate(self.shape[0] * self.shape[1] * 4)

    def write(self, number: int, first: int, rows_RF: np.ndarray) -> None:
        content = np.ascontiguousarray(rows_RF, "<f4").reshape(-1).view(np.uint8).data
        with (self.folder / _ROWS).open("r+b") as file:
            file.seek(first * self.shape[1] * 4)
            file.write(content)
        (self.folder / _mark(number, content)).touch()

    def finished(self, number: int, first: int, rows: int) -> bool:
        """Whether the span was written and its bytes are still those."""
        if not any(self.folder.glob(f"{number:05d}-*.done")):
            return False
        return (self.folder / _mark(number, self.between(first, first + rows).reshape(-1).view(np.uint8).data)).exists()

    def map(self) -> np.ndarray:
        """[I, F] over the file's pages; private, so that torch takes it without complaint."""
        return np.memmap(self.folder / _ROWS, "<f4", "c", shape=self.shape)

    def between(self, first: int, last: int) -> np.ndarray:
        """[last - first, F], a copy."""
        with (self.folder / _ROWS).open("rb") as file:
            count = (last - first) * self.shape[1]
            return np.fromfile(file, "<f4", count, offset=first * self.shape[1] * 4).reshape(-1, self.shape[1])

    def drop(self) -> None:
        """Marks first: no mark outlives its rows."""
        for path in [*self.folder.glob("*.done"), self.folder / _ROWS]:
            path.unlink(missing_ok=True)
        if self.folder.exists():
            os.rmdir(self.folder)


def _mark(number: int, content: memoryview) -> str:
    return f"{number:05d}-{hashlib.sha256(content).hexdigest()[:16]}.done"
