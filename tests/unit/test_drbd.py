"""How a node of DRBD ends. The kernel's part is in the lab; here, answers it gives by chance."""

from pathlib import Path

import pytest

from testbed.hosts import drbd
from testbed.hosts.drbd import Node
from testbed.hosts.supervise import ProcessError


def answering(directory: Path, status: str, message: str, *, times: int) -> Path:
    """A `drbdsetup` that fails with this so many times; its calls are lines of the file."""
    calls = directory / "calls"
    program = directory / "drbdsetup"
    program.write_text(
        f'#!/bin/sh\necho "$@" >> {calls}\n'
        f"[ $(wc -l < {calls}) -gt {times} ] && exit 0\n"
        f'echo "guest: State change failed: ({status}) {message}" >&2\nexit 11\n'
    )
    program.chmod(0o755)
    return calls


def test_in_transient_state_it_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    calls = answering(tmp_path, "-18", "In transient state, retry after next state change", times=2)
    Node("guest", 0).end()
    assert calls.read_text() == "down guest\n" * 3


def test_any_other_refusal_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    calls = answering(tmp_path, "-12", "Device is held open by someone", times=2)
    with pytest.raises(ProcessError, match="held open"):
        Node("guest", 0).end()
    assert calls.read_text() == "down guest\n"


def test_a_state_that_never_passes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(drbd, "DOWN_LIMIT_S", 0.2)
    answering(tmp_path, "-18", "In transient state", times=1000)
    with pytest.raises(ProcessError, match="transient"):
        Node("guest", 0).end()
