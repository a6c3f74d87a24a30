"""The demo's driver: jobs that are owned, results that appear whole or not at all."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from experiments import demo
from experiments.publishing import wording
from experiments.running import progress
from experiments.running.batch import Batch, Job
from testbed.migration import disk, options
from testbed.workloads import suite
from tests.support.synthetic_run import Synthetic, write_run


def job(tmp_path: Path, name: str, code: str) -> Job:
    return Job(name, [sys.executable, "-c", code], tmp_path / "logs" / f"{name}.log")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s, "waited 60 s in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """No such process, or only its entry in the table is left."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def plain() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=False, width=200), out


def test_no_more_jobs_run_at_once_than_allowed(tmp_path: Path) -> None:
    jobs = [job(tmp_path, str(i), "import time; time.sleep(0.3)") for i in range(3)]
    most = 0
    with Batch(jobs, 2, tmp_path) as batch:
        while batch.poll():
            most = max(most, len(batch.running))
            time.sleep(0.01)
    assert most == 2
    assert [one.status for one in jobs] == [0, 0, 0]


def test_a_failing_job_is_reported_with_its_logs_tail_and_the_rest_ended(tmp_path: Path) -> None:
    slow = job(tmp_path, "slow", "import time; time.sleep(600)")
    bad = job(tmp_path, "bad", "print('about to fail'); raise SystemExit(3)")
    never = job(tmp_path, "never", "pass")
    console, _ = plain()
    with pytest.raises(demo.DemoError, match=r"(?s)'bad' ended with status 3.*about to fail"):
        demo.run_all(Batch([slow, bad, never], 2, tmp_path), console)
    assert slow.process is not None and gone(slow.process.pid)
    assert never.process is None


def test_stopping_ends_what_a_job_started(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '600']);"
        "print(p.pid, flush=True); p.wait()"
    )
    parent = job(tmp_path, "parent", code)
    with Batch([parent], 1, tmp_path) as batch:
        batch.poll()
        wait_for(lambda: bool(parent.tail(1)))
        child = int(parent.tail(1)[0])
    wait_for(lambda: gone(child))
    assert parent.process is not None and gone(parent.process.pid)


def test_a_job_that_ignores_polite_signals_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ((signal.SIGINT, 0.2), (signal.SIGTERM, 0.2), (signal.SIGKILL, 5.0))
    monkeypatch.setattr("experiments.running.batch.POLITELY", quick)
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
    )
    deaf = job(tmp_path, "deaf", code)
    with Batch([deaf], 1, tmp_path) as batch:
        batch.poll()
        wait_for(lambda: deaf.tail(1) == ["deaf"])
    assert deaf.status == -signal.SIGKILL


def test_progress_is_plain_lines_without_a_terminal(tmp_path: Path) -> None:
    console, out = plain()
    with Batch([job(tmp_path, "one", "print('hello')")], 1, tmp_path) as batch:
        progress.follow(batch, console)
    text = out.getvalue()
    assert "one: started" in text and "one: done after 0:0" in text
    assert "\x1b" not in text


def test_progress_draws_a_line_for_each_run_in_a_terminal(tmp_path: Path) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    with Batch([job(tmp_path, "remote", "print('hello')")], 1, tmp_path) as batch:
        progress.follow(batch, console, wording.title)
    assert "Plain remote disk" in out.getvalue()


LOG = """\
lab: virtual machine, virtual clock, seed 42: this kernel has no netem
prepare    3.1 s  sites built
prepare   21.4 s  workloads started
    run    8.0 s  switch done           downtime 0.032 s
    run   10.0 s  ... A 0.0 Mbit/s  WAN 95.5 Mbit/s  present 41.2 %  ETA 3 s
"""


def test_a_runs_line_shows_its_last_event_and_what_is_present(tmp_path: Path) -> None:
    one = job(tmp_path, "one", f"print({LOG!r}, flush=True); import time; time.sleep(600)")
    with Batch([one], 1, tmp_path) as batch:
        batch.poll()
        wait_for(lambda: len(one.tail(9)) == 5)
        assert progress.phase(one) == "switch done downtime 0.032 s | present 41.2 %"
        estimates = progress.Estimates(batch)
        share = progress.MILESTONES["switch done"]
        assert estimates.expected_s(one) == pytest.approx(one.elapsed_s / share, abs=5)


def test_the_share_done_is_the_last_milestones() -> None:
    lines = LOG.splitlines()
    assert progress.share_done(lines[:1]) is None
    assert progress.share_done(lines[:2]) == progress.MILESTONES["sites built"]
    assert progress.share_done(lines) == progress.MILESTONES["switch done"]
    background = [*lines, "    run   14.0 s  background started", lines[-1]]
    start, complete = (
        progress.MILESTONES[name] for name in ("background started", "relocation complete")
    )
    assert progress.share_done(background) == pytest.approx(start + 0.412 * (complete - start))


def test_results_take_the_old_ones_place_only_when_complete(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(ValueError, match="broken"), demo.building_for(out) as building:
        (building / "log").write_text("why")
        raise ValueError("broken")
    assert (out / "old").exists()
    assert (tmp_path / "demo-failed" / "log").read_text() == "why"
    with demo.building_for(out) as building:
        (building / "new").write_text("new")
    assert [path.name for path in out.iterdir()] == ["new"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "demo-failed"]


def test_an_interrupted_demo_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with pytest.raises(KeyboardInterrupt), demo.building_for(out) as building:
        (building / "half").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_each_run_goes_to_the_lab_with_its_seed_and_directory(tmp_path: Path) -> None:
    made = {one.name: one.command for one in demo.jobs(tmp_path, 7, "vm", "virtual")}
    assert set(made) == set(demo.VARIANTS)
    command = list(made["background"])
    assert command[1:4] == ["-m", "testbed.lab", "run"]
    assert str(tmp_path / "runs" / "background") in command
    assert command[command.index("--clock") + 1] == "virtual"
    program = command[command.index("--") + 1 :]
    assert program[0] == "testbed.migration"
    assert program[program.index("--seed") + 1] == "7"


def test_a_real_guest_is_brought_along_into_the_lab(tmp_path: Path) -> None:
    for one in demo.jobs(tmp_path, 7, "vm", None, "qemu"):
        command = list(one.command)
        assert command[1:4] == ["-m", "testbed.migration.lab", "run"]
        program = command[command.index("--") + 1 :]
        assert options.parse(program[1:]).guest == "qemu"


def test_the_demo_ends_with_table_speed_checks_and_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {
        "remote": Synthetic(system="remote", background=False),
        "on-demand": Synthetic(background=False),
        "background": Synthetic(),
    }

    def pretend(batch: Batch, console: Console) -> None:
        for one in batch.jobs:
            write_run(Path(one.log).parent.parent / "runs" / one.name, made[one.name])

    monkeypatch.setattr(demo, "run_all", pretend)
    monkeypatch.setattr("testbed.lab.build.ensure", lambda: None)
    monkeypatch.setattr("testbed.lab.entry.choose", lambda *_: demo.entry.Choice("vm", ""))
    console, text = plain()
    demo.demo(42, tmp_path / "demo", "auto", None, console)
    said = text.getvalue()
    assert "nbdcopy in the same run 91.5 Mbit/s" in said
    assert "Checks: all 9 passed" in said
    assert str(tmp_path / "demo" / "index.html") in said
    assert (tmp_path / "demo" / "runs" / "remote" / "run.json").is_file()


def test_ctrl_c_ends_the_driver_with_130_and_leaves_nothing(tmp_path: Path) -> None:
    """The real driver as a process, with a stand-in for the lab that sleeps."""
    script = tmp_path / "driver.py"
    script.write_text(
        "import sys, pathlib\n"
        "from experiments import demo\n"
        "from experiments.running.batch import Job\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "code = \"import os,time; print('pid', os.getpid(), flush=True); time.sleep(600)\"\n"
        "demo.entry.choose = lambda where, clock: demo.entry.Choice('native', '')\n"
        "demo.jobs = lambda *a: [Job('x', [sys.executable, '-c', code], root / 'x.log')]\n"
        "sys.exit(demo.main(['--out', str(root / 'out' / 'demo')]))\n"
    )
    driver = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        cwd=demo.PROJECT,
        env={**os.environ, "PYTHONPATH": str(demo.PROJECT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    try:
        log = tmp_path / "x.log"
        wait_for(lambda: log.exists() and log.read_text().endswith("\n"))
        pid = int(log.read_text().split()[1])
        driver.send_signal(signal.SIGINT)
        _, said = driver.communicate(timeout=30)
    finally:
        driver.kill()
        driver.wait()
    assert driver.returncode == 130
    assert "interrupted" in said
    assert gone(pid)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("variant", demo.VARIANTS)
def test_the_runs_are_ones_that_the_test_bed_can_make(variant: str) -> None:
    parameters = options.parse([*demo.COMMON, *demo.VARIANTS[variant]])
    wanted = disk.Wanted(size_bytes=parameters.disk_bytes, fill_bytes=parameters.fill_bytes)
    wanted.check(suite.room(parameters.load))
