"""Medians, ratios and tables: pure, from figures to text.

A ratio is the median of the rounds' ratios to the reference, each to the reference's figure of the
same round: what drifts on a shared machine drifts for both. The spread beside it is half the
distance between the smallest and the largest round, as a fraction of the median: what the machine's
noise makes of the figure.
"""

import statistics
from collections.abc import Sequence

from rich.table import Table


def summarise(values: Sequence[float]) -> dict[str, float]:
    """`median` and `spread` (half the range over the median) of the rounds."""
    median = statistics.median(values)
    half_range = (max(values) - min(values)) / 2
    return {"median": median, "spread": half_range / median if median else 0.0}


def ratio(rounds: Sequence[float], reference: Sequence[float]) -> float:
    """The median over the rounds of a figure over the reference's of the same round."""
    return statistics.median(one / base for one, base in zip(rounds, reference, strict=True))


def quantile(values: Sequence[float], fraction: float) -> float | None:
    """The value below which `fraction` lies, by nearest rank; None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(0, min(len(ordered) - 1, -(-len(ordered) * fraction // 1) - 1))
    return ordered[int(rank)]


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; all but the first column are aligned right."""
    rule = ["---", *("---:" for _ in head[1:])]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, rule, *rows))


def shown(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """The same for a terminal."""
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table


def cell(value: float | None, scale: float = 1.0, digits: int = 1) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else f"{value * scale:,.{digits}f}"
