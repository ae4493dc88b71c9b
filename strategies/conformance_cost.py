"""Time and memory of a rule in a process of its own: what an earlier call left behind does not hide what it takes."""

from __future__ import annotations

import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedquilt.errors import FederationError
from strategies.rules import Aggregator

NUM_USERS, NUM_COORDINATES = 300, 1000
MAX_SECONDS = 10.0
MAX_FLOATS = 10 * NUM_USERS * NUM_COORDINATES + 4 * NUM_USERS**2  # a K × K × P has 30 times as many
_SLACK = 24 * 2**20  # bytes; what allocators and threads take beside
_WARM = 64  # coordinates of a first call, after which everything is compiled and imported
_TIMEOUT = 120.0
_STATUS, _PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Cost:
    """Of one call: seconds of processor time, and bytes more than before it, at its peak."""

    seconds: float
    grown: int

    @property
    def fault(self) -> str:
        """ "" within the limits."""
        of = f"for {NUM_USERS} users of {NUM_COORDINATES:,} parameters"
        if self.seconds > MAX_SECONDS:
            return f"takes {self.seconds:.1f} s {of}"
        limit = 4 * MAX_FLOATS + _SLACK
        told = f"takes {self.grown / 2**20:.0f} MiB {of}, more than {limit / 2**20:.0f}: 10 K·P + 4 K² floats and some"
        return told if self.grown > limit else ""


def costs_of(rules: Sequence[Aggregator], seed: int = 0) -> list[Cost]:
    """In one fresh process, one after the other. FederationError where a rule cannot be sent there or raises."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "strategies.conformance_cost"]
    try:
        given = pickle.dumps((list(rules), seed))
        done = subprocess.run(command, input=given, env=environment, capture_output=True, timeout=_TIMEOUT, check=True)
    except subprocess.TimeoutExpired:
        raise FederationError(f"takes more than {_TIMEOUT:g} s in a process of its own") from None
    except subprocess.CalledProcessError as error:
        last = (error.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {error.returncode}"])[-1]
        raise FederationError(f"in a process of its own: {last}") from None
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise FederationError(f"cannot be sent to a process of its own: {error}") from None
    return [Cost(**cost) for cost in json.loads(done.stdout.splitlines()[-1])]


def _measured(rule: Aggregator, seed: int) -> dict[str, float]:
    from strategies.conformance_cases import Case, honest_updates

    small, large = (Case(rule, honest_updates(NUM_USERS, p, seed), seed) for p in (_WARM, NUM_COORDINATES))
    small.of(small.updates_KP)
    before, started = _memory(), time.process_time()
    large.of(large.updates_KP)
    return {"seconds": time.process_time() - started, "grown": _memory(peak=True) - before}


def _memory(peak: bool = False) -> int:
    """Bytes now, from which the peak is counted anew, or at the peak since; without Linux's files, ever."""
    if not _PEAK.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if not peak:
        _PEAK.write_text("5")
    name = "VmHWM:" if peak else "VmRSS:"
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    given_rules, given_seed = pickle.loads(sys.stdin.buffer.read())
    print(json.dumps([_measured(rule, given_seed) for rule in given_rules]))
