"""The command line against real servers, run as its users run it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model import source_bytes
from tests.support.servers import nbdkit, plugin, wait_for

SIZE_BYTES = 4 << 20


def relocator(*arguments: str, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    """`relocator ARGUMENTS`."""
    command = [sys.executable, "-m", "relocator.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def test_a_relocation_from_target_to_complete(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    target, proxy = tmp_path / "t", tmp_path / "p"
    pids = []
    try:
        for name, arguments in (
            (target, ["target", str(tmp_path / "disk.img")]),
            (
                proxy,
                ["proxy", str(tmp_path / "store"), f"nbd+unix:///?socket={target}.sock"]
                + ["--rate", "8M", "--control", f"{proxy}.control"],
            ),
        ):
            done = relocator(*arguments, "--socket", f"{name}.sock", "--detach", f"{name}.pid")
            assert done.returncode == 0, done.stderr
            pid_file = Path(f"{name}.pid")  # nbdkit writes it once it has gone to the background
            wait_for(lambda file=pid_file: file.exists() and file.read_text(), "the pid file")
            pids.append(int(pid_file.read_text()))
        shown = json.loads(relocator("status", f"{proxy}.control", "--json").stdout)
        assert (shown["role"], shown["state"], shown["size_bytes"]) == (
            "proxy",
            "active",
            SIZE_BYTES,
        )
        assert "proxy, active" in relocator("status", f"{proxy}.control").stdout
        assert relocator("set", f"{proxy}.control", "rate=none", "window=1M").returncode == 0
        assert relocator("wait", f"{proxy}.control", "--timeout", "30").returncode == 0
        assert "target, complete" in relocator("status", f"{proxy}.control", "--watch").stdout
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGTERM)
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


@pytest.mark.parametrize(
    ("arguments", "status", "wanted"),
    [
        (["target", "/x", "--listen", "nowhere"], 2, "--listen=nowhere: not HOST:PORT"),
        (["proxy", "/tmp/s", "nbd://h", "--rate", "quick"], 2, "rate=quick: not a rate"),
        (["proxy", "/tmp/s", "nbd://h", "--threads", "0"], 2, "--threads=0: must be at least 1"),
        (["status", "/nonexistent"], 1, "/nonexistent: No such file or directory; is the plugin"),
        (["set", "/nonexistent", "rate"], 2, "rate: not KEY=VALUE"),
        (["wait", "/nonexistent", "--timeout", "soon"], 2, "--timeout=soon: not a time in seconds"),
        (["explode"], 2, "invalid choice: 'explode'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: list[str], status: int, wanted: str) -> None:
    done = relocator(*arguments)
    assert done.returncode == status
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr


def test_verbs_steer_a_running_proxy(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    with nbdkit(tmp_path, "source", ["file", str(tmp_path / "disk.img")]) as source:
        keys = (f"store={tmp_path / 'store'}", f"source={source.uri}", "rate=1M")
        with plugin(tmp_path, "proxy", *keys) as server:
            control = str(server.control_path)
            assert relocator("pause", control).returncode == 0
            assert server.control.call("status")["background"] == "paused"
            refused = relocator("set", control, "rate=5M", "window=tiny")
            assert (refused.returncode, "window=tiny: not a size" in refused.stderr) == (1, True)
            assert server.control.call("status")["rate_cap_bits_per_s"] == 1e6  # all or nothing
            gave_up = relocator("wait", control, "--timeout", "0.3")
            assert gave_up.returncode == 1
            assert "not complete yet" in gave_up.stderr


def test_print_shows_the_command_that_would_run() -> None:
    done = relocator("proxy", "/s", "nbd://h", "--listen", "0.0.0.0:9", "--print")
    assert done.stdout.startswith("nbdkit --threads 16 --foreground --port 9 --ipaddr 0.0.0.0")
    assert done.stdout.rstrip().endswith("plugin.py store=/s source=nbd://h")


def test_doctor_says_where_the_test_bed_runs_and_why() -> None:
    done = relocator("doctor")
    assert done.returncode == 0
    assert "This host can serve and relocate disks." in done.stdout
    assert "Test bed: runs " in done.stdout
