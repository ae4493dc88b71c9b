"""The README's tables of the aggregators, made from ``aggregators.json``."""

from __future__ import annotations

from pathlib import Path

from experiments.results import Row, markdown_table, origin, read_results, replace_block

WHO = ("ours", "byzfl", "flower", "torch")
AIMS = {  # figure: what it is, aim, whether less is better
    "min_speedup_vs_byzfl": ("least speed-up against byzfl, over all rules and sizes that it finished", 1.0, False),
    "min_speedup_vs_flower": ("least speed-up against Flower's own strategies, likewise", 1.0, False),
    "min_speedup_vs_torch": ("least speed-up against plain torch, likewise", 1.0, False),
    "median_speedup_vs_best": ("median at 1,000 x 100,000 against the best of the three", 2.0, False),
    "trimmed_mean_speedup_vs_best": ("trimmed mean at 1,000 x 100,000, likewise", 2.0, False),
    "mixing_peak_gb": ("peak memory of mixing at 1,000 x 100,000, GB", 2.0, True),
    "peak_gb_10000x4000": ("peak memory of the hungriest rule at 10,000 x 4,000, GB", 4.0, True),
    "largest_difference": ("largest relative difference where definitions agree", 1e-5, True),
    "largest_float64_difference": ("of these, where it is larger: ours to the definition in float64", 1e-5, True),
}


def update(readme: Path, path: Path) -> None:
    measured = read_results(path)
    replace_block(readme, "aggregators-headline", f"{headline_table(measured['headline'])}\n\n{_told(measured)}")
    replace_block(readme, "aggregators", "\n\n".join(size_tables(measured["rows"])))


def _told(measured: Row) -> str:
    return origin(measured).replace("results.json", "aggregators.json")


def headline_table(figures: dict[str, float]) -> str:
    lines = []
    for name, (told, aim, less) in AIMS.items():
        if name in figures:
            reached = figures[name] <= aim if less else figures[name] >= aim
            sign, said = "≤" if less else "≥", "yes" if reached else "**no**"
            lines.append((f"{told} (`{name}`)", f"{figures[name]:.3g}", f"{sign} {aim:g}", said))
    return markdown_table(("figure", "measured", "aim", "reached"), lines)


def size_tables(rows: list[Row]) -> list[str]:
    """A table for every K and P: processor milliseconds of everyone, and our peak memory."""
    tables = []
    for k, p in sorted({(row["k"], row["p"]) for row in rows}):
        cells = {(row["rule"], row["who"]): row for row in rows if (row["k"], row["p"]) == (k, p)}
        lines = []
        for rule in dict.fromkeys(rule for rule, _ in cells):
            ours = cells.get((rule, "ours"), {})
            peak = f"{ours['peak_gb']:.2f}" if "peak_gb" in ours else "–"
            times = [time_told(cells.get((rule, who))) for who in WHO]
            lines.append((rule, *times, peak))
        tables.append(markdown_table((f"{k:,} x {p:,}, ms", *WHO, "our peak, GB"), lines))
    return tables


def time_told(row: Row | None) -> str:
    """Milliseconds of the processor, or what became of it; "–" where there is no such rule."""
    if row is None or row["status"] == "has none":
        return "–"
    if row["status"] != "ok":
        return row.get("detail") or row["status"]
    return f"{1000 * row['cpu_seconds']:.3g}" if row["cpu_seconds"] < 1 else f"{1000 * row['cpu_seconds']:,.0f}"
