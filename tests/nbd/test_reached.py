"""Who takes part in a move comes back after it was lost: an ssh, a QMP connection, a proxy."""

import getpass
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest

from relocator.client import Client
from relocator.errors import RelocatorError
from relocator.moving.ends import Disk, of_all, open_disk
from relocator.moving.reach import reaching
from testbed.hosts.ssh import keys, known, sshd_command
from tests.support import servers
from tests.support.command import impatient
from tests.support.machine import machine
from tests.support.relay import relay
from tests.support.servers import Server, children, wait_for
from tests.support.sources import daemon

SIZE_BYTES = 1 << 20


def ssh_of(pid: int) -> list[int]:
    """The ssh processes that it has started."""
    return [one for one in children(pid) if Path(f"/proc/{one}/comm").read_text() == "ssh\n"]


def test_a_socket_behind_ssh_is_reached_anew_when_ssh_has_given_up(tmp_path: Path) -> None:
    options = keys(tmp_path).split()
    with (
        servers.target(tmp_path, SIZE_BYTES) as target,
        servers.proxy(tmp_path, target, "mode=standby") as proxy,
        daemon(tmp_path, "sshd", partial(sshd_command, tmp_path, "127.0.0.1")) as door,
        reaching(options) as reach,
    ):
        known(tmp_path, "127.0.0.1", door.port)
        far = f"ssh://{getpass.getuser()}@127.0.0.1:{door.port}"
        disk = open_disk(f"{far}{target.control_path},{far}{proxy.control_path}", reach, 0)

        def both(disk: Disk) -> str:
            try:
                return f"{disk.source.identify()['id']} {disk.call('status')['state']}"
            except RelocatorError as error:
                return str(error)

        wanted = f"{target.status()['id']} standby"
        assert of_all([disk], both) == [wanted]
        first = ssh_of(os.getpid())
        assert len(first) == 2
        assert of_all([disk], both) == [wanted]
        assert ssh_of(os.getpid()) == first  # they outlive the thread that asked
        for pid in first:
            subprocess.run(["kill", "-9", str(pid)], check=True)
        wait_for(lambda: of_all([disk], both) == [wanted], "both ends, by another ssh")
        again = ssh_of(os.getpid())
        assert (len(again), set(first) & set(again)) == (2, set())
    assert not ssh_of(os.getpid())


@contextmanager
def waiting(directory: Path, proxy: Server, target: Server) -> Iterator[Path]:
    """A move that waits for the word at the socket that is returned; it moves after the block.

    `link-source` and `link-destination` are the ways to its QEMUs.
    """
    word = directory / "word"
    argv = [sys.executable, "-m", "relocator.cli.main", "migrate"]
    argv += ["--uri", f"unix:{directory / 'memory'}"]
    argv += ["--from", str(directory / "link-source"), "--to", str(directory / "link-destination")]
    argv += ["--disk", f"{target.control_path},{proxy.control_path}", "--hold", str(word)]
    environment = impatient(directory)  # there is no guest that would read anything
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            wait_for(lambda: "in step" in waits_for(word), "the copy ahead")
            yield word
            Client(word).call("go")
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert "Task" not in said  # nothing of asyncio's is left behind


def waits_for(word: Path) -> str:
    try:
        return str(Client(word).call("status")["waits_for"])
    except RelocatorError:
        return ""


@pytest.mark.parametrize("lost", ["source", "destination", "proxy"])
def test_a_move_that_waits_for_the_word_outlives_what_is_lost_meanwhile(
    tmp_path: Path, lost: str
) -> None:
    with ExitStack() as ends:
        target = ends.enter_context(servers.target(tmp_path, SIZE_BYTES))
        proxy = ends.enter_context(servers.proxy(tmp_path, target, "mode=standby"))
        links = {}
        for name, flags in (("source", ()), ("destination", ("-incoming", "defer"))):
            qemu = ends.enter_context(machine(tmp_path, name, *flags))
            links[name] = ends.enter_context(relay(tmp_path / f"link-{name}", qemu.qmp))
        with waiting(tmp_path, proxy, target) as word:
            if lost != "proxy":
                links[lost].cut()
                links[lost].mend()
                return
            proxy.kill()
            wait_for(lambda: "its proxy doesn't answer" in waits_for(word), "that to be said")
            proxy = ends.enter_context(servers.proxy(tmp_path, target, "mode=standby"))
            wait_for(lambda: "in step" in waits_for(word), "the copy ahead")
