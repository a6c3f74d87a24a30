"""Figures, tables and one page of everything that was measured.

    python -m experiments.publishing.evaluation OUT

Reads OUT/metrics.csv (of experiments.analysis.metrics) and the runs in OUT/runs; writes
OUT/figures/*.png, OUT/tables/*.csv and *.md, OUT/index.html, which needs no other file, and
OUT/summary.md, the same without the table of all runs. A function of those alone: no dates, hosts
or paths. Runs that failed, were refused or are lacking are named where they would have been shown.

Exit status: 0 all is written; 1 the metrics or a run can't be read.
"""

import base64
import math
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import experiments
from experiments.publishing.figures import ALL, draw, duels
from experiments.publishing.figures.evidence import Drawn, Evidence
from experiments.publishing.report import template
from experiments.running.rundir import RunError
from experiments.scenarios import scenario

#: column of the table of all runs -> its head; identity first
RUNS_TABLE = {
    "scenario": "scenario",
    "axes": "conditions",
    "name": "system",
    "seed": "seed",
    "clock": "clock",
    "outcome": "outcome",
    "downtime_s": "downtime",
    "independent_s": "source free",
    "recovered_s": "as local",
    "during_read_p50_s": "read p50",
    "during_read_p99_s": "read p99",
    "lost_work_s": "lost work",
    "link_use": "link use",
    "wan_over_allocated": "WAN / disk",
}
SHARES = ("link_use", "wan_over_allocated")
TERMS = """\
Differences below 10 % are not counted, nor, of several seeds, those whose 95 % interval includes 1.
Downtime is the time in which the guest stands still; “meanwhile” is from the move's start
until the source may go. A read or write is due when the load's rate says so: where the last one was
still under way then, it has waited since."""
CHOSEN = """\
Which of the two is chosen anew for each figure in each condition, as is the best of the others; a
move is made with one of them."""
QUESTIONS = {path.stem: path for path in scenario.SCENARIOS.glob("*.toml")}


def evaluate(out: Path) -> dict[str, Drawn]:
    """Draws and writes everything; RunError if it can't be read."""
    evidence = Evidence(out)
    drawn = {name: draw_one(evidence) for name, draw_one in ALL.items()}
    for directory in (out / "figures", out / "tables"):
        directory.mkdir(exist_ok=True)
    for name, one in drawn.items():
        if one.png is not None:
            (out / "figures" / f"{name}.png").write_bytes(one.png)
        if one.table is not None:
            table = one.table.to_csv(index=False, float_format="%.9g", lineterminator="\n")
            (out / "tables" / f"{name}.csv").write_text(table, encoding="utf-8")
            (out / "tables" / f"{name}.md").write_text(markdown(one.table), encoding="utf-8")
    said = content(evidence, drawn)
    (out / "index.html").write_text(page(said, evidence), encoding="utf-8")
    text = template("summary.md.j2").render(**said, mark=_mark)
    (out / "summary.md").write_text(text, encoding="utf-8")
    return drawn


def markdown(table: pd.DataFrame) -> str:
    """The table for people: each estimate as mean (low to high), or the mean alone of one seed; and
    of how many seeds, if it did not happen in all."""
    names = [name for name in table.columns if not name.endswith(("_low", "_high", "_seeds"))]
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    for _, row in table.iterrows():
        cells = []
        for name in names:
            low, high = row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan)
            spread = "" if pd.isna(low) else f" ({_number(low)} to {_number(high)})"
            count = row.get(f"{name}_seeds", 0)
            some = f" in {count} of {row['seeds']}" if 0 < count < row.get("seeds", 0) else ""
            cells.append(f"{_number(row[name])}{spread}{some}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _number(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "–" if math.isnan(value) else f"{value:.4g}"


def summary(evidence: Evidence, drawn: Mapping[str, Drawn]) -> list[str]:
    """What the page says first: how many cells (some share a run), and what came of them. Those
    that failed are named under their scenario's figure; where that has none, here."""
    frame = evidence.frame
    bad = frame[frame["outcome"] != "ok"]
    said = []
    if len(bad):
        counted = ", ".join(f"{n} {what}" for what, n in bad["outcome"].value_counts().items())
        said.append(f"{len(frame)} cells; {counted} (named below, in no figure).")
        findings = bad[[evidence.finding(row) is not None for _, row in bad.iterrows()]]
        for name, rows in findings.groupby("name"):
            known = evidence.finding(rows.iloc[0])
            said.append(f"{name} failed in {len(rows)} of them, a finding: {known}.")
        said += evidence.not_shown(bad[~bad["scenario"].isin(drawn)])
    else:
        said.append(f"{len(frame)} cells; every run passed all of its checks.")
    lacking = [name for name, one in drawn.items() if one.png is None]
    if lacking:
        said.append(f"Nothing to draw for: {', '.join(lacking)}.")
    return said


def content(evidence: Evidence, drawn: Mapping[str, Drawn]) -> dict[str, Any]:
    """What both the page and summary.md say."""
    compared = evidence.scenario("compare")
    front = duels.front(compared)
    return {
        "counts": summary(evidence, drawn),
        "verdicts": drawn["compare"].sentences,
        "terms": " ".join(filter(None, (TERMS, duels.few(compared)))),
        "chosen": CHOSEN,
        "scored": [measure.label.replace("\n", " ") for measure in duels.SCORED],
        "front": front,
        "tally": duels.tally(front) if front else "",
        "alone": duels.alone(compared),
        "scores": duels.scores(compared),
        "drawn": drawn,
        "questions": {name: _about(name) for name in drawn},
    }


def page(said: Mapping[str, Any], evidence: Evidence) -> str:
    """The page: `content`, and all runs."""
    images = {
        name: "data:image/png;base64," + base64.b64encode(one.png).decode("ascii")
        for name, one in said["drawn"].items()
        if one.png is not None
    }
    return template("evaluation.html.j2").render(
        **said,
        tiles=tiles(evidence.frame),
        images=images,
        heads=list(RUNS_TABLE.values()),
        rows=[_cells(row) for _, row in evidence.frame.iterrows()],
    )


def _mark(score: duels.Score | None) -> str:
    """A score for summary.md: who is ahead shows without colours too."""
    if score is None:
        return ""
    around = {"ok": "**", "bad": "*"}.get(score.kind, "")
    return f"{around}{score.text}{around}"


def _about(name: str) -> str:
    """The question that a scenario answers, from its file."""
    text = QUESTIONS[name].read_text(encoding="utf-8") if name in QUESTIONS else ""
    return str(tomllib.loads(text).get("about", ""))


def tiles(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Figures of all relocator runs of the comparison for the page's top: (figure, what it is)."""
    rows = frame[(frame["scenario"] == "compare") & (frame["name"] == "relocator")]
    rows = rows[rows["outcome"] == "ok"]
    found = []
    for column, what in (
        ("downtime_s", "downtime, median of all conditions"),
        ("independent_s", "from the switch until the source may go, median"),
        ("wan_over_allocated", "times the disk's data went over the WAN"),
        ("link_use", "of the link used while the disk was copied"),
    ):
        values = rows[column].fillna(math.inf) if column == "independent_s" else rows[column]
        value = values.median() if len(rows) else math.nan
        if math.isfinite(value):
            found.append((_tile(column, float(value)), what))
    return found


def _tile(column: str, value: float) -> str:
    if column == "link_use":
        return f"{value * 100:.0f} %"
    return f"{value:.2f}" if column == "wan_over_allocated" else draw.s(value)


def _cells(row: pd.Series) -> dict[str, Any]:
    """A row of the table of all runs: text to show, value to sort by."""
    cells = []
    for name in RUNS_TABLE:
        value = row[name]
        if isinstance(value, str):
            cells.append({"text": value, "sort": value})
        elif name == "seed":
            cells.append({"text": str(value), "sort": value})
        elif pd.isna(value):
            cells.append({"text": "", "sort": ""})
        else:
            text = f"{value:.2f}" if name in SHARES else draw.s(float(value))
            cells.append({"text": text, "sort": f"{value:.9g}"})
    return {"cells": cells, "bad": row["outcome"] != "ok", "reason": row["reason"]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = experiments.parser("publishing.evaluation", __doc__)
    parser.add_argument("out", type=Path, metavar="OUT")
    args = parser.parse_args(argv)
    try:
        drawn = evaluate(args.out)
    except (RunError, OSError) as error:
        print(f"evaluation: {error}", file=sys.stderr)
        return 1
    count = sum(one.png is not None for one in drawn.values())
    print(f"evaluation: {count} of {len(drawn)} figures, in {args.out / 'index.html'}")
    for name, one in drawn.items():
        for note in one.notes:
            if note.startswith(("Not ", "Lacking")):
                print(f"evaluation: {name}: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
