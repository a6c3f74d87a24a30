"""The lab, for real: boots of the virtual machine and what a caller sees of them."""

import filecmp
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import inside

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

ARGUMENTS = ["two words", "quote ' and \"", "new\nline", "ümlaut €", "", "--seed", "$HOME `x` \\"]
PROJECT = Path(__file__).parents[2]


def lab(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "testbed.lab", *arguments]


def in_vm(out: Path, *options: str, task: tuple[str, ...]) -> list[str]:
    run = ("run", "--where", "vm", "--out", str(out), *options, "--", "tests.lab.inside", *task)
    return lab(*run)


@dataclass(frozen=True)
class Finished:
    status: int
    stdout: bytes
    out: Path


def use_everything(out: Path) -> Finished:
    given = out.parent / "given file.txt"
    given.write_text("from the host\n")
    command = in_vm(out, "--file", str(given), task=("everything", *ARGUMENTS))
    done = subprocess.run(command, stdout=subprocess.PIPE, cwd=PROJECT, check=False)
    return Finished(done.returncode, done.stdout, out)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return use_everything(tmp_path_factory.mktemp("lab") / "first")


def test_exit_status_and_output_are_the_programs(first: Finished) -> None:
    assert first.status == inside.STATUS
    assert first.stdout == inside.printed() + b"and this on standard error\n"


def test_arguments_arrive_as_they_were_given(first: Finished) -> None:
    assert json.loads((first.out / "arguments.json").read_text()) == ARGUMENTS


def test_files_given_are_there_by_their_names(first: Finished) -> None:
    facts = json.loads((first.out / "facts.json").read_text())
    assert facts["files"] == {"given file.txt": "from the host\n"}


def test_files_come_back(first: Finished) -> None:
    names = {str(path.relative_to(first.out)) for path in first.out.rglob("*")}
    assert names == {
        *("arguments.json", "facts.json", "link"),
        *("sub directory", "sub directory/large"),
    }
    assert (first.out / "link").readlink() == Path("facts.json")
    with (first.out / "sub directory" / "large").open("rb") as file:
        for number in range(inside.LARGE_BYTES >> 20):
            assert file.read(1 << 20) == inside.large_block(number)
        assert file.read(1) == b""


def test_nothing_of_the_host_is_seen_inside(first: Finished) -> None:
    facts = json.loads((first.out / "facts.json").read_text())
    assert facts["choice"][0] == "native"
    assert facts["directory"] == "/lab/tree"
    assert facts["terminals"] == [False, False, False]
    assert facts["processors"] == 1
    environment = facts["environment"]
    assert (environment["LAB_CLOCK"], environment["LAB_SEED"]) == ("virtual", "42")
    assert not {"USER", "LOGNAME", "SUDO_USER", "HOSTNAME", "TMPDIR"} & set(environment)
    assert str(PROJECT) not in json.dumps(facts)


@pytest.fixture
def busy_processor() -> Iterator[None]:
    hog = subprocess.Popen(["sh", "-c", "while :; do :; done"])
    yield
    hog.kill()
    hog.wait()


@pytest.mark.usefixtures("busy_processor")
def test_a_virtual_run_is_repeated_to_the_bit_on_a_busy_machine(
    first: Finished, tmp_path: Path
) -> None:
    again = use_everything(tmp_path / "again")
    assert (again.status, again.stdout) == (first.status, first.stdout)
    names = ["arguments.json", "facts.json", "sub directory/large"]
    assert (again.out / "facts.json").read_text() == (first.out / "facts.json").read_text()
    assert filecmp.cmpfiles(first.out, again.out, names, shallow=False)[0] == names


def test_the_real_clock_uses_the_processors_asked_for(tmp_path: Path) -> None:
    command = in_vm(tmp_path, "--clock", "real", "--cpus", "2", task=("clock",))
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=PROJECT, check=True)
    clock, processors, slept_s = done.stdout.split()
    assert (clock, processors) == ("real", "2")
    assert 0.5 <= float(slept_s) < 2


def processes_with(seed: int) -> list[str]:
    """Command lines of the machines that were started with this seed."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[0].endswith(b"qemu-system-x86_64") and str(seed).encode() in words:
            found.append(b" ".join(words).decode())
    return found


@pytest.mark.parametrize(
    ("number", "after", "status"),
    [
        (signal.SIGINT, b"started\n", 128 + signal.SIGINT),
        (signal.SIGTERM, b"", 128 + signal.SIGTERM),
        (signal.SIGKILL, b"", -signal.SIGKILL),
    ],
)
def test_a_signal_ends_it_at_once_and_leaves_nothing(
    number: signal.Signals, after: bytes, status: int, tmp_path: Path
) -> None:
    seed = time.time_ns() % 2**40
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        in_vm(tmp_path / "out", "--seed", str(seed), task=("wait",)),
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(temporary)},
        cwd=PROJECT,
    )
    assert process.stdout is not None
    with process:
        while not processes_with(seed):
            assert process.poll() is None
            time.sleep(0.05)
        assert process.stdout.read(len(after)) == after
        process.send_signal(number)
        assert process.wait(timeout=30) == status
    deadline_s = time.monotonic() + 30
    while processes_with(seed) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert processes_with(seed) == []
    assert list(temporary.iterdir()) == []


def test_a_timeout_is_said_and_has_its_status(tmp_path: Path) -> None:
    command = in_vm(tmp_path, "--timeout", "2", task=("wait",))
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 124
    assert "ended after 2 s" in done.stderr


def test_a_kernel_panic_is_reported_with_the_consoles_tail(tmp_path: Path) -> None:
    command = in_vm(tmp_path, "--timeout", "120", task=("panic",))
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert done.returncode == 1
    assert done.stdout == "about to crash\n"
    assert "ended before the program did" in done.stderr
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stderr


def test_a_shell_works_on_the_terminal(tmp_path: Path) -> None:
    terminal, its_end = pty.openpty()
    command = lab("shell", "--where", "vm", "--out", str(tmp_path))
    process = subprocess.Popen(
        command, stdin=its_end, stdout=its_end, stderr=subprocess.DEVNULL, cwd=PROJECT
    )
    os.close(its_end)
    seen = b""
    with process:
        while b"lab:" not in seen:
            seen += os.read(terminal, 4096)
        os.write(terminal, b"tty; echo $((41 + 1)) > $LAB_OUT/answer; exit 3\n")
        try:
            while chunk := os.read(terminal, 4096):
                seen += chunk
        except OSError:  # how a terminal says that its other end is closed
            pass
        assert process.wait(timeout=60) == 3
    os.close(terminal)
    assert b"/dev/ttyS1" in seen
    assert (tmp_path / "answer").read_text() == "42\n"
