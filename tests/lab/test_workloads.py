"""Workloads, disks and the changing link, each by itself on the real parts in the lab."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.lab import workloads_inside as inside

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

PROJECT = Path(__file__).parents[2]
TASKS = ("loads", "bank", "layouts", "link")
# What a workload logs besides the ledger: kind of I/O or of work -> at least, in WORK_S seconds.
LEAST = {
    "ledger": {},
    "mixed": {"read": 100, "write": 40},
    "compile": {"compile": 2},
    "sqlite": {"lookup": 60, "commit": 15, "sqlite": 15},
    "sqlite:delete": {"lookup": 60, "commit": 15, "sqlite": 15},
    "postgres": {"transaction": 40, "postgres": 40},
    "git": {"git-checkout": 2, "git-commit": 2, "git-status": 2, "git-log": 2},
    "fio:experiments/fio/zipf.fio": {"read": 100, "write": 40},
    "fio:experiments/fio/skewed.fio": {"read": 100, "write": 40},
    "fio:experiments/fio/sequential.fio": {"read": 130},
    "fio:experiments/fio/mixed.fio": {"read": 100, "write": 40},
    "fio:experiments/fio/mail.fio": {"read": 80, "write": 40},
    "fio:experiments/fio/boot.fio": {"read": 200, "write": 10},
}


def in_lab(task: str, out: Path) -> Any:
    """The JSON that a task left behind."""
    command = [sys.executable, "-m", "testbed.lab", "run", "--where", "vm", "--out", str(out)]
    command += ["--", "tests.lab.workloads_inside", task]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads((out / f"{task}.json").read_text())


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Any]]]:
    """What every task leaves behind, which is there when it is asked for; two tasks at a time."""
    top = tmp_path_factory.mktemp("workloads")
    with ThreadPoolExecutor(2) as pool:
        yield {task: pool.submit(in_lab, task, top / task) for task in TASKS}


@pytest.fixture(scope="module")
def loads(left: dict[str, Future[Any]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = left["loads"].result()
    return found


@pytest.mark.parametrize("words", inside.LOADS)
def test_a_workload_works_is_collected_and_leaves_a_sound_disk(
    words: str, loads: dict[str, dict[str, Any]]
) -> None:
    found = loads[words]
    assert (found["changed"], found["clean"]) == ([], True)
    assert all(problems == [] for problems in found["problems"].values())
    done = found["ios"] | found["work"]
    assert done.pop("ledger") >= 40
    assert done.keys() == LEAST[words].keys()
    assert {kind: done[kind] for kind, least in LEAST[words].items() if done[kind] < least} == {}


@pytest.mark.parametrize("words", inside.LOADS)
def test_a_workload_is_moderate_and_on_the_clock(
    words: str, loads: dict[str, dict[str, Any]]
) -> None:
    assert loads[words]["busy"] < 0.3
    first_s, last_s = loads[words]["span_s"]
    assert 0 < first_s < 1
    assert inside.WORK_S - 0.5 < last_s < inside.WORK_S + 1


def test_what_is_lost_or_damaged_in_a_bank_is_found(left: dict[str, Future[Any]]) -> None:
    found = left["bank"].result()
    lost = found.pop("twice as many acknowledged")
    assert lost and all("commits are lost" in one for one in lost)
    assert "page verification failed" in " ".join(found.pop("a page is damaged"))
    (problem,) = found.pop("its log is lost")
    assert problem.startswith("the database can't be read")
    assert found == {}


def test_every_job_file_is_tried() -> None:
    names = {path.stem for path in (PROJECT / "experiments" / "fio").glob("*.fio")}
    assert names == {*inside.FIO, "common"}


def test_a_file_system_in_a_partition_is_the_guests(left: dict[str, Future[Any]]) -> None:
    found = left["layouts"].result()
    for layout, (kind, changed, table) in found.items():
        file_system, partition = layout.split()
        assert (kind, changed) == (file_system, [])
        label = {"none": "", "mbr": "label: dos", "gpt": "label: gpt"}[partition]
        assert table.startswith(label)


def test_a_cut_loses_all_and_a_new_rate_and_delay_nothing(left: dict[str, Future[Any]]) -> None:
    found = left["link"].result()
    answers = dict(found["answers"])  # number of the ping, one every 0.1 s -> round trip in ms
    assert found["done"]
    assert len(found["events"]) == 4
    assert set(found["congestion"]) == {"bbr"}
    assert set(range(1, 101)) - set(answers) == set(range(21, 41))
    assert all(
        answers[number] == pytest.approx(20.2, abs=0.5)
        for number in range(1, 60)
        if number in answers
    )
    # 1042 bytes each way at 1 Mbit/s, and the delay
    assert all(answers[number] == pytest.approx(117, abs=0.5) for number in range(61, 101))
