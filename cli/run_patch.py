"""What a finished run has deployed last: the cloud's tensors and the patch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedquilt.errors import RunError

if TYPE_CHECKING:
    import numpy as np

    from fedquilt.runs import RunFolder


def base_and_patch(run: RunFolder) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """RunError for a run that is not finished."""
    from safetensors.numpy import load

    if not run.cloud_path.exists() or not (run.path / "patch.npz").exists():
        raise RunError(f"{run.path} is not finished: go on with `fedquilt simulate --resume {run.path}`")
    return load(run.cloud_path.read_bytes()), run.read_arrays("patch.npz")["patch_P"]
