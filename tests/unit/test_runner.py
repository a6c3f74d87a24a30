"""A run is built beside its place, kept whatever came of it, and never changed."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from experiments import reproduce
from experiments.running import code, matrix, runner, watch
from experiments.running.batch import Batch, Job
from experiments.scenarios.cells import Cell

PROJECT = Path(__file__).parents[2]
A = Cell("some/a/s1", "some", {}, "a", 1, "virtual", 60, ("--seed", "1"))
B = replace(A, id="some/b/s1", system="b", same_as=A.id)
C = replace(A, id="some/c/s1", system="c", trace_of=A.id)
REQUESTS = "t_s,kind,offset_bytes,length_bytes\n1.0,read,8192,4096\n"

RUNS = """
import json, pathlib, sys
run = pathlib.Path(sys.argv[1])
(run / "requests.csv").write_text(sys.argv[3])
document = {"outcome": sys.argv[2], "reason": "as asked", "summary": {"switch_s": 0.5}}
(run / "run.json").write_text(json.dumps(document))
print("says something")
"""
WAITS = """
import pathlib, sys, time
(pathlib.Path(sys.argv[1]).parent.parent / "started").touch()
time.sleep(600)
"""


def ends(outcome: str) -> runner.Command:
    return lambda _cell, run, _trace: [sys.executable, "-c", RUNS, str(run), outcome, REQUESTS]


def crashes(_cell: Cell, _run: Path, _trace: Path) -> list[str]:
    return [sys.executable, "-c", "print('no such device'); raise SystemExit(7)"]


def read(out: Path, cell: Cell, name: str) -> dict[str, object]:
    return json.loads((runner.directory(out, cell.id) / name).read_text())


def test_a_run_has_its_cell_command_and_code_beside_it(tmp_path: Path) -> None:
    assert runner.run(A, tmp_path, ends("ok")) == "ok"
    kept = read(tmp_path, A, "cell.json")
    assert Cell.of(kept["cell"]) == A  # type: ignore[arg-type]
    assert kept["code"] == code.version()
    assert str(kept["command"]).startswith("python -m testbed.lab run --out RUN")
    assert kept["status"] == 0
    assert (runner.directory(tmp_path, A.id) / "lab.log").read_text() == "says something\n"
    assert not list((tmp_path / "building").iterdir())


@pytest.mark.parametrize("outcome", ["failed", "refused"])
def test_a_run_that_did_not_go_well_is_kept_and_marked(outcome: str, tmp_path: Path) -> None:
    assert runner.run(A, tmp_path, ends(outcome)) == outcome
    assert not runner.is_current(tmp_path, A, code.version())


def test_a_run_without_a_result_is_marked_with_the_labs_last_words(tmp_path: Path) -> None:
    assert runner.run(A, tmp_path, crashes) == "failed"
    document = read(tmp_path, A, "run.json")
    assert "status 7" in str(document["reason"])
    assert "no such device" in str(document["reason"])
    assert {"parameters", "calibration", "summary", "format"} <= set(document)


def test_the_earlier_run_is_moved_out_of_the_way(tmp_path: Path) -> None:
    for outcome in ("failed", "refused", "ok"):
        runner.run(A, tmp_path, ends(outcome))
    old = tmp_path / "superseded" / A.id
    kept = [json.loads((old / number / "run.json").read_text()) for number in ("1", "2")]
    assert [document["outcome"] for document in kept] == ["failed", "refused"]
    assert runner.outcome(tmp_path, A.id) == "ok"


def test_a_cell_with_the_same_run_gets_a_copy_under_its_own_name(tmp_path: Path) -> None:
    runner.run(A, tmp_path, ends("ok"))
    assert runner.run(B, tmp_path, crashes) == "ok"
    assert read(tmp_path, B, "run.json") == read(tmp_path, A, "run.json")
    assert read(tmp_path, B, "cell.json")["cell"]["id"] == B.id  # type: ignore[index]


def test_the_oracle_gets_the_trace_of_the_run_it_needs(tmp_path: Path) -> None:
    runner.run(A, tmp_path, ends("ok"))
    seen: list[str] = []

    def command(cell: Cell, run: Path, trace: Path) -> list[str]:
        seen.append(trace.read_text())
        return ends("ok")(cell, run, trace)

    assert runner.run(C, tmp_path, command) == "ok"
    assert seen == ["8192,4096\n"]


def test_without_the_run_it_needs_the_oracle_fails_and_says_why(tmp_path: Path) -> None:
    runner.run(A, tmp_path, ends("failed"))
    assert runner.run(C, tmp_path, ends("ok")) == "failed"
    assert f"{A.id}, ended as failed" in str(read(tmp_path, C, "run.json")["reason"])


def test_a_run_of_other_code_or_command_is_not_current(tmp_path: Path) -> None:
    version = code.version()
    runner.run(A, tmp_path, ends("ok"))
    assert runner.is_current(tmp_path, A, version)
    assert not runner.is_current(tmp_path, A, {**version, "run": "other"})
    assert runner.is_current(tmp_path, A, {**version, "tree": "other", "describe": "other"})
    assert not runner.is_current(tmp_path, replace(A, timeout_s=61), version)
    assert not runner.is_current(tmp_path, B, version)


@pytest.fixture
def announcing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module of an installed project that announces a system `theirs` and a workload `log`."""
    site = tmp_path / "site-packages"
    about = site / "zonal-1.dist-info"
    about.mkdir(parents=True)
    module = site / "zonal.py"
    module.write_text("class Theirs: ...\ndef log(argument, settings): ...\n")
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: zonal\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[relocator.systems]\ntheirs = zonal:Theirs\n[relocator.workloads]\nlog = zonal:log\n"
    )
    names = ("zonal.py", *(f"{about.name}/{name}" for name in ("METADATA", "entry_points.txt")))
    (about / "RECORD").write_text("".join(f"{name},,\n" for name in names))
    monkeypatch.syspath_prepend(str(site))
    code.of_others.cache_clear()
    yield module
    code.of_others.cache_clear()
    sys.modules.pop("zonal", None)


@pytest.mark.parametrize(
    ("arguments", "is_theirs"),
    [
        (("--system", "theirs"), True),
        (("--system", "remote", "--workloads", "mixed,log:7"), True),
        (("--system", "remote", "--workloads", "mixed"), False),
    ],
)
def test_a_change_of_anothers_project_makes_its_own_runs_anew(
    arguments: tuple[str, ...], is_theirs: bool, tmp_path: Path, announcing: Path
) -> None:
    cell = replace(A, arguments=arguments)
    runner.run(cell, tmp_path, ends("ok"))
    assert runner.is_current(tmp_path, cell, code.version())
    announcing.write_text(announcing.read_text() + "# another line\n")
    assert runner.is_current(tmp_path, cell, code.version()) is not is_theirs


def test_anothers_program_that_was_built_anew_makes_its_runs_anew(
    tmp_path: Path, announcing: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "theirs-server"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    cells = [
        replace(A, id=f"some/{name}/s1", arguments=("--system", name), programs=(program.name,))
        for name in ("theirs", "xnbd")
    ]
    for cell in cells:
        runner.run(cell, tmp_path, ends("ok"))
        assert runner.is_current(tmp_path, cell, code.version())
    program.write_text("#!/bin/sh\nexit 1\n")
    assert [runner.is_current(tmp_path, cell, code.version()) for cell in cells] == [False, True]


def test_two_do_not_run_the_same_cell_at_once(tmp_path: Path) -> None:
    def command(cell: Cell, run: Path, trace: Path) -> list[str]:
        with pytest.raises(runner.RunnerError, match="somebody else is running it"):
            runner.run(A, tmp_path, ends("ok"))
        runner.clear(tmp_path)
        assert run.exists()
        return ends("ok")(cell, run, trace)

    assert runner.run(A, tmp_path, command) == "ok"


def test_what_a_killed_run_left_is_cleared(tmp_path: Path) -> None:
    place = runner.building(tmp_path, A.id)
    place.mkdir(parents=True)
    (place / "half").touch()
    runner.clear(tmp_path)
    assert not list((tmp_path / "building").iterdir())


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_run_and_leaves_nothing(signum: int, tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from experiments.running import runner
from testbed import ending
from tests.unit import test_runner as here
ending.on_signals()
command = lambda cell, run, trace: [sys.executable, "-c", here.WAITS, str(run)]
runner.run(here.A, Path({str(tmp_path)!r}), command)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=PROJECT, stderr=subprocess.DEVNULL
    )
    try:
        deadline_s = time.monotonic() + 60
        while not (tmp_path / "started").exists():
            assert time.monotonic() < deadline_s and process.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        os.kill(process.pid, signum)
        assert process.wait(60) != 0
    finally:
        process.kill()
        process.wait()
    assert all(gone(int(child)) for child in children)
    assert not list((tmp_path / "building").iterdir())
    assert not runner.directory(tmp_path, A.id).exists()


# --- the matrix's command line


def test_an_unknown_cell_or_scenario_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert matrix.main(["show", "e1/on-demnd/s1"]) == 2
    assert "did you mean 'e1/on-demand/s1'" in capsys.readouterr().err
    assert matrix.main(["list", "orderin"]) == 2
    assert "did you mean 'ordering'" in capsys.readouterr().err
    assert matrix.main(["list", "--seeds", "0"]) == 2


def test_list_and_show_say_what_a_cell_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert matrix.main(["list", "--quick", "e1"]) == 0
    assert capsys.readouterr().out == "e1/on-demand/s1\n"
    assert matrix.main(["show", "e1/on-demand/s1", "--quick"]) == 0
    shown = capsys.readouterr().out
    assert "python -m testbed.lab run --out RUN" in shown
    assert "--background off" in shown


def test_running_a_cell_alone_runs_what_it_needs_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []

    def fake(cell: Cell, out: Path) -> str:
        ran.append(cell.id)
        return real_run(cell, out, ends("ok"))

    real_run = runner.run
    monkeypatch.setattr(runner, "run", fake)
    command = ["run", "ordering/oracle/s1", "--quick", "--out", str(tmp_path)]
    assert matrix.main(command) == 0
    assert matrix.main(command) == 0
    assert ran == ["ordering/sequential/s1", "ordering/oracle/s1"]
    assert "complete already" in capsys.readouterr().err
    assert matrix.main([*command, "--again"]) == 0
    assert ran[2:] == ["ordering/oracle/s1"]


# --- all of them


def test_only_what_is_missing_failed_or_of_other_code_runs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = replace(A, id="some/failed/s1", seed=2)
    for cell, outcome in ((A, "ok"), (B, "ok"), (C, "ok"), (failed, "failed")):
        runner.run(cell, tmp_path, ends(outcome))
    assert reproduce.prepare([A, B, C, failed], tmp_path) == {A.id, B.id, C.id}
    assert not runner.directory(tmp_path, failed.id).exists()
    assert (tmp_path / "superseded" / failed.id / "1" / "run.json").exists()
    # What is made of a run that is made again is made again too.
    assert reproduce.prepare([replace(A, timeout_s=9), B, C], tmp_path) == set()
    assert not runner.directory(tmp_path, B.id).exists()


def test_the_summary_names_every_run_that_did_not_go_well(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=300)
    runner.run(A, tmp_path, ends("ok"))
    runner.run(C, tmp_path, ends("refused"))
    assert reproduce.summary([A], tmp_path, console)
    assert not reproduce.summary([A, B, C], tmp_path, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1 ok, 1 refused, 1 missing" in shown
    assert "refused: some/c/s1: as asked" in shown
    assert "missing: some/b/s1: it did not run" in shown


def test_a_peer_that_may_fail_fails_neither_the_whole_nor_again(tmp_path: Path) -> None:
    peer = replace(A, may_fail="it loses writes")
    runner.run(peer, tmp_path, ends("failed"))
    console = Console(file=io.StringIO(), width=300)
    assert reproduce.summary([peer], tmp_path, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "failed (known: it loses writes): some/a/s1: as asked" in shown
    assert runner.is_current(tmp_path, peer, code.version())
    runner.run(peer, tmp_path, ends("refused"))
    assert not reproduce.summary([peer], tmp_path, console)
    assert not runner.is_current(tmp_path, peer, code.version())


def test_a_program_comes_along_if_it_is_installed_and_else_its_system_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = replace(A, system="xnbd", programs=("xnbd-server",))
    monkeypatch.setenv("PATH", str(tmp_path))
    console = Console(file=io.StringIO(), width=300)
    assert reproduce.installed([A, cell], console) == [A]
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Left out: xnbd: xnbd-server" in shown
    monkeypatch.setattr(matrix.cells, "quick_or_full", lambda _quick, _seeds: [cell])
    assert matrix.main(["run", cell.id, "--out", str(tmp_path)]) == 1
    assert "it needs xnbd-server: not in the path" in capsys.readouterr().err

    program = tmp_path / "xnbd-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert reproduce.installed([A, cell], console) == [A, cell]
    command = runner.lab_command(cell, tmp_path / "run", tmp_path / "trace")
    assert command[command.index("--file") + 1] == str(program)
    assert "--file xnbd-server" in runner.shown_command(cell)


def test_only_one_works_in_a_directory(tmp_path: Path) -> None:
    with reproduce.only_one(tmp_path):
        with pytest.raises(reproduce.ReproduceError, match="another one is at work"):
            with reproduce.only_one(tmp_path):
                pass


def test_progress_is_read_from_the_directory(tmp_path: Path) -> None:
    shown = watch.Watch([A, B, C], tmp_path)
    shown.look()
    assert shown.headline() == "0 of 3 cells, ~2:00 to go"  # a copy takes no time
    log = runner.building(tmp_path, C.id) / "lab.log"
    log.parent.mkdir(parents=True)
    log.write_text("    run   18.0 s  switch done   ...\n")
    runner.run(A, tmp_path, ends("failed"))
    assert shown.look() == [A]
    assert shown.running == [C]
    assert shown.phase(C).startswith("switch done")
    assert shown.headline().startswith("1 of 3 cells, 1 failed, ~0:0")
    console = Console(file=io.StringIO(), width=200)
    with Batch([Job("x", ["true"], tmp_path / "log")], 1, tmp_path) as batch:
        runner.run(B, tmp_path, ends("ok"))
        watch.follow(batch, shown, console)
    assert "failed  some/b/s1 (a copy)" in console.file.getvalue()  # type: ignore[attr-defined]
