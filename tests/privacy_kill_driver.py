"""Appends one event, writes the release only after it, and is killed in between: run by test_privacy_ledger."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import numpy as np

from fedquilt.privacy.events import GaussianRelease, Poisson
from fedquilt.privacy.gate import Gate
from fedquilt.privacy.ledger import Ledger
from fedquilt.privacy.mechanisms import noised_mean
from fedquilt.privacy.randomness import Simulated

EVENT = GaussianRelease("r", 1, Poisson(0.05), 1.0, 1.0, 50.0, 50, "c1")


def make(event: GaussianRelease) -> np.ndarray:
    return noised_mean(np.ones((2, 4), np.float32) / 2, event, Simulated(7))


def main(folder: Path, when: str) -> None:
    ledger = Ledger.open(folder / "privacy.sqlite")
    if when == "before":
        ledger.append = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    out = Gate(ledger).release(EVENT, make)
    if when == "between":
        os.kill(os.getpid(), signal.SIGKILL)
    (folder / "released.bin").write_bytes(out.tobytes())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
