"""What libvirt's hook says of guests whose disk is in standby, or of no known state.

The moments come as libvirt calls them, and the disk's server is real; tests/hosts has libvirt
itself.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from relocator.cli import libvirt
from relocator.errors import RelocatorError
from tests.support import servers
from tests.support.servers import Server

GUEST = """
<domain type='kvm'><name>vm1</name><devices>
  <disk type='network'><source protocol='nbd'><host name='127.0.0.1' port='10809'/></source></disk>
</devices></domain>
"""


@pytest.fixture
def standby(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The guest's disk, in standby; `systemctl start` does nothing, for its server runs."""
    for name, directory in (("CONFIGURATION", "etc"), ("RUN", "run")):
        (tmp_path / directory).mkdir()
        monkeypatch.setattr(libvirt, name, tmp_path / directory)
    (tmp_path / "etc/vm1.conf").write_text("LISTEN=0.0.0.0:10809\n")
    systemctl(tmp_path, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    with (
        servers.target(tmp_path, 1 << 20) as target,
        servers.proxy(tmp_path, target, "mode=standby") as proxy,
    ):
        (tmp_path / "run/vm1.sock").symlink_to(proxy.control_path)
        yield proxy


def systemctl(tmp_path: Path, command: str) -> None:
    (tmp_path / "bin").mkdir(exist_ok=True)
    path = tmp_path / "bin/systemctl"
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The host's time since its start, to be changed."""
    now = [1000.0]
    monkeypatch.setattr(libvirt, "_now", lambda: now[0])
    return now


def test_a_guest_that_arrives_passes_once_however_long_its_proxy_took_to_start(
    standby: Server, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt, "_start", lambda _: clock.append(clock.pop() + 100))
    libvirt._arrives("vm1", GUEST)
    clock[0] += 55
    libvirt._starts("vm1", GUEST)
    with pytest.raises(RelocatorError, match="is in standby here, so vm1 may run at its source;"):
        libvirt._starts("vm1", GUEST)
    assert standby.status()["state"] == "standby"


@pytest.mark.parametrize("ago_s", [61, -60])
def test_a_guest_whose_arrival_came_to_nothing_is_refused_later(
    standby: Server, clock: list[float], ago_s: float
) -> None:
    """Libvirt failed before QEMU was started, and told nobody; or the mark is from elsewhere."""
    libvirt._arrives("vm1", GUEST)
    clock[0] += ago_s
    said = f"at its source .it was to arrive {ago_s} s ago.; if it does not"
    with pytest.raises(RelocatorError, match=said):
        libvirt._starts("vm1", GUEST)
    assert list(libvirt.RUN.glob("arriving-*")) == []


def test_a_mark_of_an_older_version_is_none(standby: Server) -> None:
    (libvirt.RUN / "arriving-vm1").touch()
    with pytest.raises(RelocatorError, match="is in standby here"):
        libvirt._starts("vm1", GUEST)


@pytest.mark.parametrize(
    ("state", "status", "again"),
    [("active", 0, True), ("activating", 3, True), ("failed", 3, False)],
)
def test_a_target_that_its_proxy_can_not_follow_is_started_again(
    standby: Server, tmp_path: Path, state: str, status: int, again: bool
) -> None:
    """It may be what a guest elsewhere still reads; activating: it has just been killed."""
    calls = tmp_path / "calls"
    systemctl(
        tmp_path,
        f'echo "$@" >>{calls}\ncase "$*" in "start relocator-proxy"*) exit 1;;\n'
        f"is-active*) echo {state}; exit {status};; esac",
    )
    with pytest.raises(RelocatorError, match=r"relocator-proxy@vm1.service can't be started"):
        libvirt._arrives("vm1", GUEST)
    last = calls.read_text().splitlines()[-1]
    assert (last == "start relocator-target@vm1.service") is again


def test_a_unit_that_does_not_start_in_time_is_named(
    standby: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libvirt, "_START_S", 0.2)
    systemctl(tmp_path, "exec sleep 60")
    with pytest.raises(RelocatorError, match=r"relocator-proxy@vm1.service has not started in"):
        libvirt._arrives("vm1", GUEST)
    systemctl(tmp_path, "exit 1")
    with pytest.raises(RelocatorError, match=r"relocator-proxy@vm1.service can't be started"):
        libvirt._arrives("vm1", GUEST)
