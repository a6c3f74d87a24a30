"""One test sent into the lab, its reports brought back.

The test's project travels (`lab.luggage`); there, `inside` runs pytest for this one test and writes
pytest's own reports into a file, which are given to the pytest here. If none come back, a report is
made that says why.
"""

import io
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from testbed.lab import build, entry
from testbed.lab.image import LabError
from testbed.lab.luggage import Luggage
from testbed.testing import covered, inside
from testbed.testing.inside import PROJECT

WHERE = "vm"
MODULE = "testbed.testing.inside"
KNOWN = ("seed", "clock", "memory", "timeout")
CONSOLE_LINES = 30


def run(item: pytest.Item) -> Sequence[pytest.TestReport]:
    """The reports of one test, run in the lab."""
    console = io.BytesIO()
    try:
        return _run(item, console)
    except (LabError, pytest.fail.Exception) as error:
        return [_failure(item, str(error), console)]


def _run(item: pytest.Item, console: io.BytesIO) -> Sequence[pytest.TestReport]:
    told, config = options(item), item.config
    entry.choose(WHERE, told["clock"])
    _build(config)
    root = config.rootpath
    if not item.path.is_relative_to(root):
        raise LabError(f"{item.path}: is not below {root}, pytest's root directory, which travels")
    measured = covered.here()
    order = inside.Order(
        test=str(item.path.relative_to(root)),
        nodeid=item.nodeid,
        ini=_relative(config.inipath, root),
        cover=None if measured is None else covered.wanted(measured, root, PROJECT),
    )
    out = _out(item)
    python = (*config.getini("lab_python"), *(("coverage",) if measured is not None else ()))
    with redirect_stderr(io.StringIO()) as said:
        status = entry.run(
            [MODULE, order.text()],
            out=out,
            where=WHERE,
            clock=told["clock"],
            seed=told["seed"],
            memory=told["memory"],
            timeout_s=told["timeout"],
            files=[root / name for name in config.getini("lab_files")],
            luggage=Luggage(root, python),
            further=config.getini("lab_packages"),
            stdout=console,
        )
    if measured is not None:
        covered.bring(measured, out, root, PROJECT)
    reports = list(_reports(config, out))
    if status != 0 or not reports:
        why = _said(out, inside.COLLECTING) or said.getvalue()
        reports.append(_failure(item, f"the lab ended with status {status}\n{why}", console))
    for report in reports:
        if report.failed:
            report.sections.append(("in the lab", f"files: {out}"))
    return reports


def options(item: pytest.Item) -> dict[str, Any]:
    """What the marker says, and what is usual where it doesn't; LabError if that can't be."""
    marker = item.get_closest_marker("in_lab")
    assert marker is not None
    for key in marker.kwargs:
        if key not in KNOWN:
            raise LabError(f"in_lab({key}=...): it takes {', '.join(KNOWN)}")
    if marker.args:
        raise LabError(f"in_lab({marker.args[0]!r}): give {', '.join(KNOWN)} by name")
    usual = {
        "seed": entry.DEFAULT_SEED,
        "clock": "virtual",
        "memory": entry.DEFAULT_MEMORY,
        "timeout": entry.DEFAULT_TIMEOUT_S,
    }
    given = usual | marker.kwargs
    if item.config.getoption("lab_seed") is not None:
        given["seed"] = item.config.getoption("lab_seed")
    return given


def _build(config: pytest.Config) -> None:
    """Makes the image now, if there is none, and lets its progress be seen."""
    manager = config.pluginmanager.getplugin("capturemanager")
    with ExitStack() as stack:
        if manager is not None:
            stack.enter_context(manager.global_and_fixture_disabled())
        build.ensure(further=config.getini("lab_packages"), log=sys.stderr)


def _out(item: pytest.Item) -> Path:
    """An empty directory for the test's files."""
    given = item.config.getoption("lab_out")
    base = Path(given) if given else item.config.rootpath / ".lab"
    base.mkdir(parents=True, exist_ok=True)
    if not given:
        (base / ".gitignore").write_text("*\n")
    out = base / re.sub(r"[^\w.=-]+", "-", item.nodeid).strip("-")
    for path in sorted(out.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    return out


def _relative(path: Path | None, root: Path) -> str | None:
    inside_root = path is not None and path.is_relative_to(root)
    return str(path.relative_to(root)) if path is not None and inside_root else None


def _reports(config: pytest.Config, out: Path) -> Iterator[pytest.TestReport]:
    for line in _said(out, inside.REPORTS).splitlines():
        data = json.loads(line)
        # What JSON made a list of: where a test stands, and why it was skipped.
        for key in ("location", "longrepr"):
            if isinstance(data[key], list):
                data[key] = tuple(data[key])
        data["user_properties"] = [tuple(pair) for pair in data["user_properties"]]
        yield config.hook.pytest_report_from_serializable(config=config, data=data)


def _said(out: Path, name: str) -> str:
    path = out / name
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _failure(item: pytest.Item, why: str, console: io.BytesIO) -> pytest.TestReport:
    lines = console.getvalue().decode(errors="replace").splitlines()[-CONSOLE_LINES:]
    return pytest.TestReport(
        nodeid=item.nodeid,
        location=item.location,
        keywords=dict.fromkeys(item.keywords, 1),
        outcome="failed",
        longrepr=why.strip(),
        when="setup",
        sections=[("what the lab printed", "\n".join(lines))] if lines else [],
    )
