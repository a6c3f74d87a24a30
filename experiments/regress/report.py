"""What moved, for a terminal and for a summary of a CI run. Pure but for the writing."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from experiments.bench.tables import markdown
from experiments.regress.figures import TRIPS
from experiments.regress.judge import Verdict

_ORDER = ("worse", "more", "less", "")
HEAD = ("figure", "baseline", "now", "moved", "limit", "")


def headline(verdicts: Sequence[Verdict]) -> str:
    """One line that says it all."""
    worse = sorted((one for one in verdicts if one.worse), key=_times_limit, reverse=True)
    also = "".join(
        f"; {word}: {count}"
        for word in ("more", "less")
        if (count := sum(one.word == word for one in verdicts))
    )
    if not worse:
        return f"no regression in {len(verdicts)} figures{also}"
    first = worse[0]
    others = f" and {len(worse) - 1} others" if len(worse) > 1 else ""
    return f"worse: {first.figure.name} {moved(first)}{others}{also}"


def hints(verdicts: Sequence[Verdict]) -> list[str]:
    """Where to look, of what is worse, the worst first."""
    worse = sorted((one for one in verdicts if one.worse), key=_times_limit, reverse=True)
    return [f"{one.figure.name}: {moved(one)}; look at {one.figure.look}" for one in worse]


def _times_limit(verdict: Verdict) -> float:
    return verdict.change / verdict.limit


def value(verdict: Verdict, number: float | None) -> str:
    """A figure with its unit."""
    if number is None:
        return "-"
    if verdict.figure.unit == "s":
        return f"{number * 1e3:,.2f} ms" if number < 1 else f"{number:.3f} s"
    if verdict.figure.unit == TRIPS:
        return f"{number:.3f} RTT"
    if verdict.figure.unit == "KiB":
        return f"{number:,.0f} KiB"
    if verdict.figure.unit == "bytes":
        return f"{number:.4f}"
    return f"{number:,.0f}" if number >= 1000 else f"{number:.2f}"


def moved(verdict: Verdict) -> str:
    """By how much, with its sign."""
    if verdict.before is None:
        return "new"
    trips = verdict.figure.unit == TRIPS
    return f"{verdict.change:+.3f} RTT" if trips else f"{verdict.change:+.2%}"


def _limit(verdict: Verdict) -> str:
    trips = verdict.figure.unit == TRIPS
    return f"{verdict.limit:.2f} RTT" if trips else f"{verdict.limit:.1%}"


def rows(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """A row a figure, what moved first."""
    ordered = sorted(verdicts, key=lambda one: _ORDER.index(one.word))
    return [
        (
            one.figure.name,
            value(one, one.before),
            value(one, one.after),
            moved(one),
            _limit(one),
            one.word,
        )
        for one in ordered
    ]


def table(verdicts: Sequence[Verdict]) -> Table:
    """For a terminal."""
    made = Table(title=headline(verdicts), title_justify="left")
    for index, name in enumerate(HEAD):
        made.add_column(name, justify="right" if 0 < index < 5 else "left")
    colours = {"worse": "bold red", "more": "yellow", "less": "green"}
    for row in rows(verdicts):
        made.add_row(*(Text(cell) for cell in row), style=colours.get(row[-1], ""))
    return made


def summary(verdicts: Sequence[Verdict], of: str) -> str:
    """Markdown, for a comment: the headline, where to look, what moved, the rest folded away."""
    lines = [f"### {headline(verdicts)}", "", f"Baseline: {of}. Virtual clock: exact.", ""]
    lines += [f"- {hint}" for hint in hints(verdicts)]
    found = rows(verdicts)
    shown = [row for row in found if row[-1]]
    if shown:
        lines += ["", markdown(HEAD, shown)]
    rest = markdown(HEAD, [row for row in found if not row[-1]])
    lines += ["", f"<details><summary>{len(found) - len(shown)} figures that stayed</summary>"]
    lines += ["", rest, "</details>", ""]
    return "\n".join(lines)
