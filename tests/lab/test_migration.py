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
    "--disk 48M --fill 24M --memory 4M --switch-at 4s --background-delay 3s --duration 9s --tail 2s"
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


def start(out: Path, *extra: str) -> subprocess.Popen[bytes]:
    """A small migration in the lab's VM."""
    command = [sys.executable, "-m", "testbed.lab", "run", "--where", "vm", "--out", str(out), "--"]
    return subprocess.Popen(
        [*command, "testbed.migration", *SMALL.split(), *extra],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(process: subprocess.Popen[bytes], status: int) -> str:
    """Its output, once it has ended with `status`."""
    output, _ = process.communicate(timeout=800)
    text = output.decode()
    assert process.returncode == status, text[-3000:]
    return text


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    directory = tmp_path_factory.mktemp("migration")
    outs = [directory / "one", directory / "two"]
    processes = [start(out) for out in outs]
    for process in processes:
        finish(process, 0)
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


def test_a_link_that_is_off_is_refused(tmp_path: Path) -> None:
    text = finish(start(tmp_path / "out", "--tolerance", "0.0000001%"), 3)
    assert "off the expected" in text
    assert read(tmp_path / "out")["outcome"] == "refused"


def test_a_process_on_a_kernel_nbd_device_moves_though_nobody_says_so(tmp_path: Path) -> None:
    """The first write at the destination is what seals the source: no verb is called."""
    finish(start(tmp_path / "out", "--set", "activate-on-write=yes"), 0)
    run = read(tmp_path / "out")
    assert {check["name"] for check in run["checks"] if check["ok"]} == PROOFS
