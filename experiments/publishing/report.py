"""The result directory: figures, tables, results.json and one self-contained page.

The files are a function of the runs alone. Nothing here asks for the date, the host, a path or how
long anything took on the wall clock, so that the same runs give the same bytes.
"""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from experiments.analysis import series
from experiments.analysis.series import Row, Runs, Windows
from experiments.publishing import plots, wording

TEMPLATES = Path(__file__).parent / "templates"


def write_results(directory: Path, runs: Runs, command: str) -> list[Row]:
    """Writes index.html, *.png, table.csv, table.md and results.json; returns the table.

    `command` is what a reader types to get the same results.
    """
    windows = series.common_windows(runs)
    rows = series.comparison(runs, windows)
    images = figures(runs)
    for name, content in images.items():
        (directory / name).write_bytes(content)
    document = series.results(runs, windows, rows)
    written = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    texts = {
        "table.csv": wording.csv_table(rows, list(runs)),
        "table.md": wording.markdown(rows, list(runs)),
        "results.json": written + "\n",
        "index.html": page(runs, windows, rows, images, command),
    }
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    return rows


def template(name: str) -> jinja2.Template:
    """A page's template; what it lacks is an error, what it shows in HTML is escaped."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=name.endswith(".html.j2"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def page(
    runs: Runs, windows: Windows, rows: list[Row], images: Mapping[str, bytes], command: str
) -> str:
    """The HTML page, with everything it needs inside."""
    first = next(iter(runs.values()))
    return template("index.html.j2").render(
        names=list(runs),
        titles={name: wording.title(name) for name in runs},
        runs=runs,
        rows=_table_view(rows, list(runs)),
        links_of=links_run(runs),
        wan=wording.wan(first),
        windows=windows,
        images={name: _data_uri(content) for name, content in images.items()},
        findings={name: wording.finding(name, run) for name, run in runs.items()},
        sentences=wording.summary_sentences(runs, windows),
        conclusion=wording.conclusion(runs, windows),
        tiles=wording.key_figures(runs, windows),
        parameters=_side_by_side({n: wording.parameters(r) for n, r in runs.items()}),
        calibration=_side_by_side({n: wording.calibration(r) for n, r in runs.items()}),
        versions=first.document["versions"],
        clock=first.document["clock"],
        seed=first.document["seed"],
        checks=_checks(runs),
        command=command,
    )


def _table_view(rows: list[Row], names: list[str]) -> list[dict[str, Any]]:
    """The rows as text; `first` where another kind of measure begins."""
    view = []
    group = None
    for row in rows:
        kind = row.label.partition(",")[0].split()[0]
        cells = [{"text": wording.cell(row, name), "best": name in row.best} for name in names]
        texts = {"label": row.label, "unit": row.unit, "note": row.note}
        view.append({**texts, "cells": cells, "first": kind != group})
        group = kind
    return view


def _side_by_side(columns: Mapping[str, Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """Rows (key, the value in each column) in the first column's order; missing ones are empty."""
    keys = list(dict.fromkeys(key for column in columns.values() for key in column))
    return [(key, [column.get(key, "") for column in columns.values()]) for key in keys]


def _checks(runs: Runs) -> list[tuple[str, list[Mapping[str, Any] | None]]]:
    """Rows (name of the check, its result in each run or None)."""
    found = {name: {check["name"]: check for check in run.checks} for name, run in runs.items()}
    keys = list(dict.fromkeys(key for checks in found.values() for key in checks))
    return [(key, [checks.get(key) for checks in found.values()]) for key in keys]


def _data_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode("ascii")


def links_run(runs: Runs) -> str | None:
    """Whose links are drawn: the first that relocates, as E1 did without background copy."""
    return next((name for name, run in runs.items() if run.relocates), None)


def figures(runs: Runs) -> dict[str, bytes]:
    """Every figure of a demo by file name: e2-NAME.png for each run, e2-compared.png, links.png."""
    scales = plots.common_scales(runs)
    drawn = {
        f"e2-{name}.png": plots.relocation_figure({name: run}, scales) for name, run in runs.items()
    }
    chosen = links_run(runs)
    if chosen is not None:
        moving = {name: run for name, run in runs.items() if run.relocates}
        drawn["e2-compared.png"] = plots.relocation_figure(moving, scales)
        drawn["links.png"] = plots.links_figure(runs[chosen])
    return drawn
