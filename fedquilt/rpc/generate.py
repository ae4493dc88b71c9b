"""Makes the Python of ``fleet.proto``: ``python -m fedquilt.rpc.generate`` after a change (needs grpcio-tools)."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROTO = "fedquilt/rpc/fleet.proto"


def generate(into: Path) -> None:
    """Writes ``fedquilt/rpc/fleet_pb2.py``, its ``.pyi`` and ``fleet_pb2_grpc.py`` under ``into``."""
    from grpc_tools import protoc

    well_known = str(files("grpc_tools") / "_proto")
    outputs = [f"--{kind}_out={into}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *outputs, PROTO]):
        raise SystemExit(f"protoc could not read {PROTO}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
