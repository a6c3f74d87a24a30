"""A whole scripted migration, in small, on the real parts: netem, kernel nbd, device-mapper, ext3.

Two runs at once, with the same seed, keep both cores of a small machine busy: each is the other's
disturbance, and both must come to the same bytes.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from experiments.analysis.compare import main as compare

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2]
SMALL = (
    "--disk 40M --fill 12M --memory 2M --switch-at 2s --background-delay 2s --duration 6s --tail 1s"
)
PROOFS = {
    "nothing-kept-early",
    "source-untouched",
    "checksums-mounted",
    "checksums-image",
    "file-system-device",
    "file-system-image",
    "ledger",
    "mixed",
    "compile",
}


def start(out: Path) -> subprocess.Popen[bytes]:
    """A small migration in the lab's VM."""
    command = [sys.executable, "-m", "testbed.lab", "run", "--where", "vm", "--out", str(out), "--"]
    return subprocess.Popen(
        [*command, "testbed.migration", *SMALL.split()],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait until it has ended well."""
    output, _ = process.communicate(timeout=800)
    assert process.returncode == 0, output.decode()[-3000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("migration")
    outs = [directory / "one", directory / "two"]
    processes = [start(out) for out in outs]
    for process in processes:
        finish(process)
    return outs


def read(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "run.json").read_text())
    return loaded


def test_the_copy_is_proved_and_the_source_was_switched_off(runs: list[Path]) -> None:
    run = read(runs[0])
    assert run["outcome"] == "ok"
    assert {check["name"] for check in run["checks"] if check["ok"]} == PROOFS
    lines = (runs[0] / "events.jsonl").read_text().splitlines()
    events = [json.loads(line)["event"] for line in lines]
    wanted = ["switch-done", "background-started", "relocation-complete", "source-off"]
    assert [event for event in events if event in wanted] == wanted
    assert events.index("workloads-ended") > events.index("source-off")


def test_everything_was_fetched_once_and_holes_never(runs: list[Path]) -> None:
    run = read(runs[0])
    fetched = run["summary"]["fetched_bytes"]
    disk_bytes = run["parameters"]["disk_bytes"]
    moved = fetched["background"] + fetched["on_demand"]
    assert fetched["hole"] > 0
    assert moved + fetched["hole"] <= disk_bytes
    assert moved <= run["summary"]["allocated_bytes"]


def test_equal_seeds_give_equal_bytes_on_a_busy_machine(
    runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    status = compare([str(out) for out in runs])
    assert status == 0, capsys.readouterr().out
