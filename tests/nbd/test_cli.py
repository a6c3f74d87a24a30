"""The command line against real servers, run as its users run it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbd
import pytest

from relocator.running.control import ControlServer
from tests.support.command import relocator
from tests.support.model import source_bytes
from tests.support.servers import moving, wait_for
from tests.support.sources import free_port

SIZE_BYTES = 4 << 20
STATUS_PAGE = Path(__file__).parents[2] / "docs" / "status.md"


def documented_fields() -> set[str]:
    """Those of the status object."""
    rows = re.findall(r"^\| (`\w+`.*?) \|", STATUS_PAGE.read_text(), re.MULTILINE)
    return set(re.findall(r"`(\w+)`", " ".join(rows)))


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
                + ["--rate", "2M", "--control", f"{proxy}.control"],
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
        assert documented_fields() == set(shown)
        assert "proxy, active" in relocator("status", f"{proxy}.control").stdout
        assert relocator("set", f"{proxy}.control", "rate=none", "window=1M").returncode == 0
        assert relocator("wait", f"{proxy}.control", "--timeout", "30").returncode == 0
        assert "target, complete" in relocator("status", f"{proxy}.control", "--watch").stdout
    finally:
        for pid in reversed(pids):
            os.kill(pid, signal.SIGTERM)
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


@pytest.mark.parametrize("congestion", ["reno", "bbr"])
def test_a_target_has_the_congestion_control_that_it_was_given(
    tmp_path: Path, congestion: str
) -> None:
    known = Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    if congestion not in known:
        pytest.skip(f"this kernel has only {', '.join(known)}")
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    port = str(free_port())
    command = [sys.executable, "-m", "relocator.cli.main", "target", str(tmp_path / "disk.img")]
    server = subprocess.Popen(
        [*command, "--listen", f"127.0.0.1:{port}", "--congestion", congestion]
    )
    handle = nbd.NBD()

    def connected() -> bool:
        assert server.poll() is None
        with suppress(nbd.Error):
            handle.connect_tcp("127.0.0.1", port)
        return bool(handle.aio_is_ready())

    try:
        wait_for(connected, "the target")
        assert handle.pread(SIZE_BYTES, 0) == source_bytes(SIZE_BYTES)
        lines = subprocess.run(
            ["ss", "-Htin", "state", "established", f"( sport = :{port} )"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert f" {congestion} " in lines
        handle.shutdown()
    finally:
        server.terminate()
        assert server.wait(10) in (0, -signal.SIGTERM)


@pytest.mark.parametrize("more", [(), ("--congestion", "reno")])
def test_a_server_whose_port_is_taken_leaves_no_control_socket(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    control = tmp_path / "control"
    with socket.create_server(("127.0.0.1", 0)) as other:
        at = f"127.0.0.1:{other.getsockname()[1]}"
        ways = ("--listen", at, "--control", str(control), *more)
        done = relocator("target", str(tmp_path / "disk.img"), *ways)
        assert f"{at}: can't be listened on: Address already in use" in done.stderr
        assert (done.returncode, control.exists()) == (1, False)


@pytest.mark.parametrize("more", [(), ("--congestion", "reno")])
@pytest.mark.parametrize(
    ("listen", "wanted"),
    [
        ("192.0.2.1:10809", "not an address of this host; `ip address` shows those"),
        ("[2001:db8::1]:10809", "not an address of this host"),
        ("nowhere.invalid:10809", "; give an address of this host"),
    ],
)
def test_an_address_that_is_not_this_host_s_is_refused_before_anything_is_made(
    tmp_path: Path, listen: str, wanted: str, more: tuple[str, ...]
) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    kept = ("--store", str(tmp_path / "maps"), "--control", str(tmp_path / "control"))
    done = relocator("target", str(tmp_path / "disk.img"), "--listen", listen, *kept, *more)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"relocator: --listen={listen}: ") and wanted in done.stderr
    assert [one.name for one in tmp_path.iterdir()] == ["disk.img"]


def test_a_server_that_waits_for_its_clients_to_go_is_named_to_the_next(tmp_path: Path) -> None:
    """Its address is still its own; at another one it is the disk that is."""
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    at, elsewhere = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = [sys.executable, "-m", "relocator.cli.main", "target", str(tmp_path / "disk.img")]
    server, clients = subprocess.Popen([*command, "--listen", at]), list[socket.socket]()

    def connected() -> bool:
        assert server.poll() is None
        with suppress(ConnectionRefusedError):
            clients.append(socket.create_connection(("127.0.0.1", int(at.split(":")[1])), 10))
        return bool(clients)

    try:
        wait_for(connected, "the target")
        assert clients[0].recv(18).startswith(b"NBDMAGIC")  # and now it waits for the client's word
        server.terminate()
        for where, wanted in (
            (at, "asked to end has it until its clients have gone"),
            (elsewhere, "is in use by another process"),
        ):
            done = relocator("target", str(tmp_path / "disk.img"), "--listen", where)
            assert (done.returncode, wanted in done.stderr) == (1, True), done.stderr
        assert server.poll() is None
        clients[0].close()
        assert server.wait(10) == 0
    finally:
        for one in clients:
            one.close()
        server.kill()
        server.wait()


def test_a_server_whose_control_socket_is_another_s_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    server = ControlServer(tmp_path / "control", lambda verb, _: {"verb": verb})
    server.start()
    try:
        ways = ("--listen", f"127.0.0.1:{free_port()}", "--control", str(tmp_path / "control"))
        done = relocator("target", str(tmp_path / "disk.img"), *ways)
        assert (done.returncode, "another process listens there" in done.stderr) == (1, True)
        assert relocator("pause", str(tmp_path / "control")).returncode == 0
    finally:
        server.stop()


def test_who_may_not_have_a_congestion_control_is_told_how_to_allow_it() -> None:
    """As in a unit, whose root lacks CAP_NET_ADMIN."""
    available, allowed = (
        Path(f"/proc/sys/net/ipv4/tcp_{which}_congestion_control").read_text().split()
        for which in ("available", "allowed")
    )
    name = next((one for one in available if one not in allowed), None)
    if name is None:
        pytest.skip(f"every user may have all that the kernel has: {', '.join(allowed)}")
    command = [sys.executable, "-m", "relocator.cli.main", "target", "/x", "--congestion", name]
    confined = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin", *command]
    done = subprocess.run(confined, capture_output=True, text=True, timeout=30, check=False)
    wanted = f"sysctl -w net.ipv4.tcp_allowed_congestion_control='{' '.join([*allowed, name])}'"
    assert (done.returncode, wanted in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "wanted"),
    [
        (["target", "/x", "--congestion", "hope"], 2, "--congestion=hope: No such file"),
        (["target", "/x", "--congestion", "reno", "--socket", "/s"], 2, "not with --socket"),
        (["target", "/x", "--congestion", "reno", "--print"], 2, "--print: not with --congestion"),
        (["target", "/x", "--listen", "nowhere"], 2, "--listen=nowhere: not HOST:PORT"),
        (["target", "/x", "--listen", "10.1.0.1:99999"], 2, "the port must be from 1 to 65535"),
        (["proxy", "nbd://h"], 2, "store=nbd://h: is a source, not a directory; give the store"),
        (["proxy", "nbd://h", "--graduate"], 2, "store=nbd://h: is a source, not a directory"),
        (["proxy", "/tmp/s", "nbd://h", "--rate", "quick"], 2, "rate=quick: not a rate"),
        (["proxy", "/tmp/s", "nbd://h", "--rate", "7,1M 8,2M"], 2, "'7,1M' is no entry"),
        (["proxy", "/tmp/s", "ssh://me:pw@h"], 2, "source=ssh://me:...@h: holds a password"),
        (["proxy", "/tmp/s", "nbd://h", "--threads", "0"], 2, "--threads=0: must be at least 1"),
        (["status", "/nonexistent"], 1, "/nonexistent: No such file or directory; is the plugin"),
        (["set", "/nonexistent", "rate"], 2, "rate: not KEY=VALUE"),
        (["wait", "/nonexistent", "--timeout", "soon"], 2, "--timeout=soon: not a time in seconds"),
        (["status", "/nonexistent", "--watch"], 1, "/nonexistent: No such file or directory"),
        (["metrics", "/c", "--listen", "9464"], 2, "--listen=9464: not HOST:PORT"),
        (["metrics", "/a/d.sock", "/b/d.sock"], 2, "two sockets have the same name"),
        (["completion", "fish"], 2, "invalid choice: 'fish'"),
        (["explode"], 2, "invalid choice: 'explode'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(arguments: list[str], status: int, wanted: str) -> None:
    done = relocator(*arguments)
    assert done.returncode == status
    assert wanted in done.stderr
    assert "Traceback" not in done.stderr


def test_verbs_steer_a_running_proxy(tmp_path: Path) -> None:
    with moving(tmp_path, SIZE_BYTES, "rate=1M") as server:
        control = str(server.control_path)
        assert relocator("pause", control).returncode == 0
        assert server.status()["background"] == "paused"
        refused = relocator("set", control, "rate=5M", "window=tiny")
        assert (refused.returncode, "window=tiny: not a size" in refused.stderr) == (1, True)
        assert server.status()["rate_cap_bits_per_s"] == 1e6  # all or nothing
        gave_up = relocator("wait", control, "--timeout", "0.3")
        assert gave_up.returncode == 1
        assert "not complete yet" in gave_up.stderr


def test_a_timetable_is_followed_shown_and_replaced(tmp_path: Path) -> None:
    with moving(tmp_path, SIZE_BYTES, "rate=00:00,1M 12:00,2M") as server:
        control = str(server.control_path)
        caps = {server.status()["rate_cap_bits_per_s"], None} | {
            server.status()["next_rate_cap"]["rate_bits_per_s"]
        }
        assert caps == {1e6, 2e6, None}
        shown = relocator("status", control).stdout
        assert "; from 12:00 2.0 Mbit/s" in shown or "; from 00:00 1.0 Mbit/s" in shown
        refused = relocator("set", control, "rate=07:00,1M 25:00,2M")
        assert refused.returncode == 1
        assert "rate=07:00,1M 25:00,2M: '25:00,2M' is no entry" in refused.stderr
        assert relocator("set", control, "rate=00:00,none").returncode == 0
        assert server.status()["next_rate_cap"] is None
        assert relocator("wait", control, "--timeout", "30").returncode == 0
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_a_deadline_paces_the_copy_and_is_told_when_it_cannot_hold(tmp_path: Path) -> None:
    with moving(tmp_path, SIZE_BYTES, "rate=1M") as server:
        control = str(server.control_path)
        assert server.status()["finish_by_s"] is None
        tomorrow = time.strftime("%Y-%m-%dT%H:%M", time.localtime(time.time() + 86400))
        assert relocator("set", control, f"finish-by={tomorrow}").returncode == 0
        found = server.status()
        assert found["rate_cap_bits_per_s"] < 1e6
        assert found["late_s"] == 0
        assert ": holds" in relocator("status", control).stdout
        now = time.strftime("%Y-%m-%dT%H:%M", time.localtime())
        assert relocator("set", control, f"finish-by={now}").returncode == 0
        found = server.status()
        assert (found["rate_cap_bits_per_s"], found["late_s"] > 0) == (1e6, True)
        assert "too late" in relocator("status", control).stdout
        refused = relocator("set", control, "finish-by=25:00")
        assert "finish-by=25:00: not a time; write HH:MM" in refused.stderr
        assert relocator("set", control, "finish-by=none", "rate=none").returncode == 0
        assert relocator("wait", control, "--timeout", "30").returncode == 0
    assert (tmp_path / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def test_print_shows_the_command_that_would_run() -> None:
    done = relocator("proxy", "/s", "nbd://h", "--listen", "0.0.0.0:9", "--print")
    assert "nbdkit --threads 16 --foreground --port 9 --ipaddr 0.0.0.0" in done.stdout
    assert done.stdout.rstrip().endswith("plugin.py store=/s source=nbd://h")


def test_doctor_says_where_the_test_bed_runs_and_why() -> None:
    done = relocator("doctor")
    assert done.returncode == 0
    assert "This host can serve and relocate disks." in done.stdout
    assert "Test bed: runs " in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_that_knows_the_commands(shell: str, tmp_path: Path) -> None:
    done = relocator("completion", shell)
    assert done.returncode == 0
    assert "--watch" in done.stdout
    if shell == "bash":
        script = tmp_path / "completion"
        ask = "COMP_WORDS=(relocator met); COMP_CWORD=1; _shtab_relocator; echo ${COMPREPLY[@]}"
        script.write_text(done.stdout + ask)
        ran = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=True)
        assert ran.stdout.split() == ["metrics"]


def test_many_clients_of_the_control_socket_at_once_are_all_answered(tmp_path: Path) -> None:
    server = ControlServer(tmp_path / "control", lambda verb, _: {"verb": verb})
    clients = [socket.socket(socket.AF_UNIX) for _ in range(60)]
    try:
        for client in clients:  # before the server takes even the first
            client.settimeout(5)
            client.connect(str(tmp_path / "control"))
            client.sendall(b'{"verb": "status"}\n')
        server.start()
        assert {client.recv(4096) for client in clients} == {b'{"ok": true, "verb": "status"}\n'}
    finally:
        for client in clients:
            client.close()
        server.stop()
