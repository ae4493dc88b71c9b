"""Figures of the report, as inline SVG: text stays text, in a palette for all eyes (Okabe and Ito)."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cli.tables import VARIANT_NAMES

COLOURS = {"stale": "#d0d3d8", "base": "#8a8f98", "global": "#0072b2", "personal": "#d55e00"}
LOSS, GAIN, INK, GRID = "#56b4e9", "#d55e00", "#33373d", "#e4e6ea"
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": "#b8bcc4",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "legend.frameon": False,
}


def figure(width: float, height: float) -> Callable[[Callable[..., str]], Callable[..., str]]:
    """A function that draws on a Figure and returns its alternative text becomes one that returns SVG."""

    def decorate(draw: Callable[..., str]) -> Callable[..., str]:
        @wraps(draw)
        def drawn(*arguments: Any, **options: Any) -> str:
            # The salt keeps ids of several figures on one page apart.
            with mpl.rc_context({**_STYLE, "svg.hashsalt": draw.__name__}):
                canvas = Figure(figsize=(width, height), layout="constrained")
                text = draw(canvas, *arguments, **options)
                return _svg(canvas, text)

        return drawn

    return decorate


def _svg(canvas: Figure, text: str) -> str:
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    body = buffer.getvalue()
    body = body[body.index("<svg") :]
    return body.replace("<svg", f'<svg role="img" aria-label="{escape(text)}"', 1)


@figure(5.2, 3.0)
def cloud_curve(canvas: Figure, records: Sequence[Mapping[str, Any]]) -> str:
    """Training loss and validation NDCG by epoch of the cloud's model."""
    epochs = [record["epoch"] for record in records]
    left = canvas.subplots()
    left.plot(epochs, [record["loss"] for record in records], color=INK, label="training loss")
    left.set(xlabel="epoch", ylabel="training loss")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    scored = [record for record in records if record.get("valid_ndcg") is not None]
    if not scored:
        return "Training loss of the cloud model by epoch."
    right = left.twinx()
    right.spines["right"].set_visible(True)
    right.grid(False)
    values = [record["valid_ndcg"] for record in scored]
    best = int(np.argmax(values))
    right.plot([record["epoch"] for record in scored], values, color=COLOURS["global"], marker="o", markersize=3)
    right.set_ylabel("validation NDCG", color=COLOURS["global"])
    right.tick_params(axis="y", colors=COLOURS["global"])
    left.axvline(scored[best]["epoch"], color=COLOURS["global"], linewidth=0.8, linestyle=":")
    return f"Cloud model: validation NDCG is best, {values[best]:.4f}, after epoch {scored[best]['epoch']}."


@figure(5.2, 3.0)
def federation_curves(canvas: Figure, curves: Mapping[str, Sequence[tuple[int, float]]], metric: str) -> str:
    """Validation metric by round, one line a variant, named at its end."""
    axes = canvas.subplots()
    for variant, points in curves.items():
        rounds, values = zip(*points, strict=True)
        axes.plot(rounds, values, color=COLOURS.get(variant, INK), marker="o", markersize=3, label=_name(variant))
    axes.set(xlabel="round", ylabel=f"validation {metric}")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.15)
    axes.legend(fontsize=9)
    ends = "; ".join(f"{_name(variant)} ends at {points[-1][1]:.4f}" for variant, points in curves.items())
    return f"Validation {metric} by round: {ends}."


@figure(5.2, 3.0)
def query_losses(canvas: Figure, records: Sequence[Mapping[str, Any]]) -> str:
    """Mean losses on the devices: support clicks before the inner steps, later query clicks after them."""
    axes = canvas.subplots()
    rounds = [record["round"] for record in records]
    for key, colour, label in (
        ("support_loss", COLOURS["base"], "support clicks, before the inner steps"),
        ("query_loss", COLOURS["personal"], "later query clicks, after them"),
    ):
        axes.plot(rounds, [record["metrics"][key] for record in records], color=colour, label=label)
    axes.set(xlabel="round", ylabel="loss on the devices")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=9)
    last = records[-1]["metrics"]
    return (
        f"Loss by round; in the last round {last['support_loss']:.3f} on support clicks before the inner steps and "
        f"{last['query_loss']:.3f} on query clicks after them."
    )


@figure(10.8, 3.4)
def groups(canvas: Figure, tables: Mapping[str, Any], metric: str, panels: Mapping[str, Mapping[str, str]]) -> str:
    """Bars per variant for each group; panels share the scale so that groups compare across them."""
    widths = [max(len(labels), 2) for labels in panels.values()]
    row = canvas.subplots(1, len(panels), sharey=True, width_ratios=widths, squeeze=False)[0]
    for axes, (title, labels) in zip(row, panels.items(), strict=True):
        _bars(axes, tables, metric, labels)
        axes.set_title(title, fontsize=10, loc="left", fontweight="bold")
    row[0].set_ylabel(metric)
    handles, names = row[0].get_legend_handles_labels()
    canvas.legend(handles, names, loc="outside upper right", ncols=len(names), fontsize=9)
    return f"{metric} by group: " + "; ".join(
        f"{label.replace(chr(10), ' ')} " + ", ".join(f"{_name(v)} {tables[v][key][metric]:.4f}" for v in tables)
        for labels in panels.values()
        for key, label in labels.items()
    )


def _bars(axes: Axes, tables: Mapping[str, Any], metric: str, labels: Mapping[str, str]) -> None:
    width = 0.8 / len(tables)
    for index, variant in enumerate(tables):
        places = np.arange(len(labels)) + (index - (len(tables) - 1) / 2) * width
        heights = [tables[variant][key][metric] for key in labels]
        bars = axes.bar(places, heights, width * 0.94, color=COLOURS.get(variant, INK), label=_name(variant))
        figures = [f"{height:.3f}".lstrip("0") for height in heights]
        axes.bar_label(bars, figures, fontsize=7.5, padding=2, rotation=90)  # upright: side by side they overlap
    axes.margins(y=0.2)
    axes.set_xticks(range(len(labels)), list(labels.values()), fontsize=9)
    axes.tick_params(axis="x", length=0)


@figure(5.2, 3.0)
def gain_histogram(canvas: Figure, gains_U: np.ndarray, metric: str) -> str:
    """How many users gained or lost how much; users whose value did not move are counted in words."""
    axes = canvas.subplots()
    edges = np.linspace(-1, 1, 41).tolist()
    for part, colour, label in ((gains_U < 0, LOSS, "lost"), (gains_U > 0, GAIN, "gained")):
        share = 100 * part.mean()
        axes.hist(gains_U[part], edges, color=colour, label=f"{share:.0f} % {label}", edgecolor="white", linewidth=0.4)
    axes.set(xlabel=f"change of a user's {metric}", ylabel="users")
    axes.plot([], [], " ", label=f"{100 * (gains_U == 0).mean():.0f} % unchanged (not drawn)")
    canvas.legend(loc="outside upper left", ncols=3, fontsize=9, handlelength=1, columnspacing=1.2)
    return f"{(gains_U > 0).mean():.0%} of users gained in {metric}, {(gains_U < 0).mean():.0%} lost."


@figure(5.2, 3.0)
def bytes_by_round(canvas: Figure, records: Sequence[Mapping[str, Any]]) -> str:
    """Megabytes of a whole round, up from the devices and down to them."""
    axes = canvas.subplots()
    rounds = np.array([record["round"] for record in records])
    for key, shift, colour, label in (("bytes_up", -0.2, "#0072b2", "up"), ("bytes_down", 0.2, "#56b4e9", "down")):
        axes.bar(rounds + shift, [record[key] / 1e6 for record in records], 0.4, color=colour, label=label)
    axes.set(xlabel="round", ylabel="MB on the wire, all devices")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(y=0.2)
    axes.legend(fontsize=9, ncols=2, loc="upper right")
    total = sum(record["bytes_up"] + record["bytes_down"] for record in records) / 1e6
    return f"Bytes on the wire by round; {total:.1f} MB in all."


@figure(5.2, 3.0)
def sizes(canvas: Figure, named: Mapping[str, float]) -> str:
    """Bytes per device on a logarithmic axis, each bar with its value."""
    axes = canvas.subplots()
    names, values = list(named), list(named.values())
    colours = ["#0072b2" if "per round" in name else "#9a9a9a" for name in names]
    bars = axes.barh(range(len(names)), values, color=colours, height=0.65)
    axes.bar_label(bars, [human_bytes(value) for value in values], padding=4, fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 3, max(values) * 12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    axes.minorticks_off()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", visible=True)
    axes.set_xlabel("bytes, logarithmic")
    return "Sizes: " + "; ".join(f"{name} {human_bytes(value)}" for name, value in named.items())


def human_bytes(value: float) -> str:
    """1,240 -> 1.2 kB; powers of ten."""
    for unit in ("B", "kB", "MB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}".replace(".0 ", " ")
        value /= 1000
    return f"{value:.1f} GB"


def _name(variant: str) -> str:
    return VARIANT_NAMES.get(variant, variant)
