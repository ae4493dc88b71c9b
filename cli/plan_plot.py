"""A plan's epsilon by rounds, as a picture."""

from __future__ import annotations

from pathlib import Path

from fedquilt.errors import PrivacyError


def plot(path: Path, by_rounds: list[tuple[int, float]], title: str, delta: float, accountant: str = "") -> None:
    """PrivacyError where nothing can be written there."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*by_rounds, strict=True), marker="o", markersize=3)
    by = f" ({accountant})" if accountant else ""
    axes.set(xlabel="rounds", ylabel=f"ε at δ = {delta:.2g}{by}", ylim=(0, None))
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise PrivacyError(f"cannot write the plot {path}: {error}") from None
