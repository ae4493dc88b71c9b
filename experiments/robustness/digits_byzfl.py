"""byzfl's rules, from the interpreter of an environment that has byzfl: it imports nothing of ours.

A child process (``python digits_byzfl.py RULE MIXING F RADIUS``) reads a header of two int64, K and P, and float32
[K, P] from its input, and writes float32 [P] to its output, once a round. K = 0 starts a new run.
"""

from __future__ import annotations

import subprocess
import sys
from types import TracebackType
from unittest.mock import MagicMock

import numpy as np

SMOOTHING, STEPS = 0.1, 3


class ByzflRule:
    """A rule of byzfl as a call, for several runs after each other; a context manager that ends its process."""

    def __init__(self, python: str, rule: str, mixing: bool, num_byzantine: int, radius: float) -> None:
        told = [rule, str(int(mixing)), str(num_byzantine), str(radius)]
        self._child = subprocess.Popen([python, __file__, *told], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __enter__(self) -> ByzflRule:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._child.stdin is not None:
            self._child.stdin.close()
        self._child.wait(timeout=60)

    def start(self) -> ByzflRule:
        """A new rule, as some of byzfl's keep state."""
        return self._tell(np.zeros(2, np.int64).tobytes())

    def __call__(self, updates_KP: np.ndarray, round_: int) -> np.ndarray:
        assert self._child.stdout is not None
        header = np.array(updates_KP.shape, np.int64).tobytes()
        self._tell(header + np.ascontiguousarray(updates_KP, np.float32).tobytes())
        return np.frombuffer(self._child.stdout.read(4 * updates_KP.shape[1]), np.float32)

    def _tell(self, told: bytes) -> ByzflRule:
        assert self._child.stdin is not None
        self._child.stdin.write(told)
        self._child.stdin.flush()
        return self


def _serve(rule: str, mixing: bool, f: int, radius: float) -> None:
    for module in ("torchvision", "torchvision.datasets", "torchvision.transforms"):
        sys.modules.setdefault(module, MagicMock())  # byzfl imports it for a data set only
    import byzfl

    make = {
        "mean": lambda: byzfl.Average(),
        "median": lambda: byzfl.Median(),
        "trimmed-mean": lambda: byzfl.TrMean(f=f),
        "krum": lambda: byzfl.Krum(f=f),
        "multi-krum": lambda: byzfl.MultiKrum(f=f),
        "geometric-median": lambda: byzfl.GeometricMedian(nu=SMOOTHING, T=STEPS),
        "centered-clipping": lambda: byzfl.CenteredClipping(L=1, tau=radius),
    }[rule]
    call = make()
    mix = byzfl.NNM(f=f) if mixing else None
    while header := sys.stdin.buffer.read(16):
        k, p = np.frombuffer(header, np.int64)
        if k == 0:
            call = make()
            continue
        rows_KP = np.frombuffer(sys.stdin.buffer.read(int(4 * k * p)), np.float32).reshape(k, p).copy()
        result_P = call(mix(rows_KP) if mix else rows_KP)
        sys.stdout.buffer.write(np.ascontiguousarray(result_P, np.float32).tobytes())
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2] == "1", int(sys.argv[3]), float(sys.argv[4]))
