"""The systemd units: started, killed, stopped and restarted by a real systemd."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.model import source_bytes
from tests.support.servers import wait_for
from tests.support.site import Site, join, share_key, site

SIZE_BYTES = 8 << 20
NAME = "disk"
TARGET, PROXY, ISCSI = (f"relocator-{role}@{NAME}" for role in ("target", "proxy", "iscsi"))
CONTROL = f"/run/relocator/{NAME}.sock"
DISK = "/srv/disk/disk.img"
IQN = "iqn.2024-01.org.example:disk"
#: The disk as a guest's QEMU has it, which waits for a server that is away.
_NODE = {
    "driver": "nbd",
    "server": {"type": "inet", "host": "127.0.0.1", "port": "10809"},
    "reconnect-delay": 60,
    "open-timeout": 60,
}
RECONNECTING = f"json:{json.dumps({'driver': 'raw', 'file': _NODE})}"
LOCAL = "nbd://127.0.0.1:10809"
LUN = f"iscsi://127.0.0.1/{IQN}/1"
#: what starts guests with the host, and has them shut down before it
HYPERVISORS = ("libvirtd.service", "virtqemud.service", "libvirt-guests.service")
_HYPERVISOR = f"""\
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=relocator status {CONTROL}
ExecStart=qemu-io -f raw {LUN} -c "read 0 64k"
ExecStop=sleep 2
ExecStop=qemu-io -f raw {LUN} -c "write -P 0x61 0 64k" -c flush
"""


@pytest.fixture
def sites(tmp_path: Path) -> Iterator[tuple[Site, Site]]:
    """Two machines with the units and a configuration each; a disk at the first."""
    with site(tmp_path, "a") as a, site(tmp_path, "b") as b:
        join(a, "10.1.0.1/24", b, "10.1.0.2/24")
        share_key(a, b)
        configure(a, source="nbd://10.1.0.2")
        configure(b, source="nbd://10.1.0.1")
        a.path("/srv/disk").mkdir()
        a.path(DISK).write_bytes(source_bytes(SIZE_BYTES))
        yield a, b


def configure(machine: Site, *, source: str, options: str = "") -> None:
    machine.run("relocator", "units")
    machine.run("systemctl", "daemon-reload")
    machine.path(f"/etc/relocator/{NAME}.conf").write_text(
        f"DISK={DISK}\nSTORE=/srv/disk\nLISTEN=0.0.0.0:10809\nSOURCE={source}\n"
        "OPTIONS=--key /etc/relocator/key\n"
        f"PROXY_OPTIONS=--mode standby --activate-on-write yes {options}\n"
        f"IQN={IQN}\nPORTAL=127.0.0.1:3260\n"
    )


def status(machine: Site) -> dict[str, object]:
    found: dict[str, object] = json.loads(machine.run("relocator", "status", CONTROL, "--json"))
    return found


def main_pid(machine: Site, unit: str) -> int:
    """The unit's main process, by its number inside."""
    return int(machine.run("systemctl", "show", "--property=MainPID", "--value", unit))


def restarts(machine: Site, unit: str) -> int:
    return int(machine.run("systemctl", "show", "--property=NRestarts", "--value", unit))


def state(machine: Site, unit: str) -> str:
    return machine.ask("systemctl", "is-active", unit).stdout.strip()


def io(machine: Site, *commands: str) -> None:
    """Reads and writes as a guest's QEMU would."""
    options = [word for command in commands for word in ("-c", command)]
    said = machine.run("qemu-io", RECONNECTING, *options)
    assert "verification failed" not in said, said


def test_the_units_are_valid_and_confined(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    names = [f"/etc/systemd/system/{unit}.service" for unit in (TARGET, PROXY, ISCSI)]
    assert a.run("systemd-analyze", "verify", *names) == ""
    for unit, most in ((TARGET, 30), (PROXY, 30), (ISCSI, 50)):  # of 100; iSCSI mounts and loads
        a.run("systemd-analyze", "security", f"--threshold={most}", f"{unit}.service")


def test_a_unit_is_started_once_its_server_takes_clients(sites: tuple[Site, Site]) -> None:
    a, b = sites
    a.run("systemctl", "start", TARGET)
    a.run("nbdinfo", "--size", LOCAL)
    assert status(a)["role"] == "target"
    b.run("systemctl", "start", PROXY)
    b.run("nbdinfo", "--size", LOCAL)
    assert status(b)["state"] == "standby"


def test_a_unit_with_a_wrong_parameter_says_which_and_starts_once_it_is_right(
    sites: tuple[Site, Site],
) -> None:
    a, b = sites
    a.run("systemctl", "start", TARGET)
    configure(b, source="nbd://10.1.0.1", options="--rate fast")
    assert b.ask("systemctl", "start", PROXY).returncode != 0
    assert "rate=fast" in b.run("journalctl", "--no-pager", "--unit", PROXY)
    configure(b, source="nbd://10.1.0.1")
    wait_for(lambda: state(b, PROXY) == "active", "the right one")


def test_however_often_a_server_fails_it_is_started_again(sites: tuple[Site, Site]) -> None:
    a, _ = sites
    drop_in = a.path(f"/etc/systemd/system/{TARGET}.service.d/soon.conf")
    drop_in.parent.mkdir()
    drop_in.write_text("[Service]\nRestartSec=100ms\n")
    a.run("systemctl", "daemon-reload")
    image, away = a.path(DISK), a.path("/srv/disk/away")
    image.rename(away)
    assert a.ask("systemctl", "start", TARGET).returncode != 0
    wait_for(lambda: restarts(a, TARGET) > 7, "more failures than systemd bears by itself")
    away.rename(image)
    wait_for(lambda: state(a, TARGET) == "active", "the disk's server")
    io(a, "read 0 64k")


def test_a_target_waits_for_a_store_that_it_had_and_that_is_missing(
    sites: tuple[Site, Site],
) -> None:
    """Its file system is mounted later, say; the disk, elsewhere, has moved on meanwhile."""
    a, b = sites
    settings = a.path(f"/etc/relocator/{NAME}.conf")
    settings.write_text(settings.read_text().replace("STORE=/srv/disk\n", "STORE=/srv/my maps\n"))
    a.run("systemctl", "start", TARGET)
    b.run("systemctl", "start", PROXY)
    io(b, "write -P 0x61 0 64k", "flush")
    assert status(a)["state"] == "sealed"
    a.run("systemctl", "stop", TARGET)
    store, away = a.path("/srv/my maps"), a.path("/srv/away")
    store.rename(away)
    store.mkdir()  # the bare mount point
    assert a.ask("systemctl", "start", TARGET).returncode != 0
    assert "STORE=/srv/my maps is gone" in a.run("journalctl", "--no-pager", "--unit", TARGET)
    store.rmdir()
    away.rename(store)
    wait_for(lambda: state(a, TARGET) == "active", "the disk's server")
    assert status(a)["state"] == "sealed"
    a.run("systemctl", "stop", TARGET)
    store.rename(away)
    a.path(f"/var/lib/relocator/{NAME}.stores").unlink()  # on purpose
    a.run("systemctl", "start", TARGET)
    assert status(a)["state"] == "complete"


def test_a_killed_server_is_started_again_and_a_guest_sees_no_error(
    sites: tuple[Site, Site],
) -> None:
    a, b = sites
    a.run("systemctl", "start", TARGET)
    b.run("systemctl", "start", PROXY)
    io(b, "write -P 0x61 0 64k", "flush")
    for machine, unit in ((a, TARGET), (b, PROXY)):
        machine.run("kill", "-9", str(main_pid(machine, unit)))
        wait_for(lambda m=machine, u=unit: restarts(m, u) >= 1, "the restart")
        wait_for(lambda m=machine, u=unit: state(m, u) == "active", "readiness")
    io(b, "read -P 0x61 0 64k", "write -P 0x62 64k 64k", "flush")
    b.run("relocator", "wait", CONTROL)
    b.run("relocator", "verify", CONTROL)
    expected = b"\x61" * 65536 + b"\x62" * 65536 + source_bytes(SIZE_BYTES)[131072:]
    assert b.path(DISK).read_bytes() == expected


def test_a_restart_under_a_guest_at_work_is_a_pause(sites: tuple[Site, Site]) -> None:
    """Systemd stops it with requests on their way; none of them may fail."""
    a, _ = sites
    a.run("systemctl", "start", TARGET)
    writes = "-f raw -t none -d 4 -c 2000 --pattern=115"
    a.path("/run/guest").write_text(
        f"while [ ! -e /run/enough ]; do\n"
        f"    qemu-img bench -w {writes} '{RECONNECTING}' || exit 1\n"
        f"    echo done >>/run/rounds\n"
        f"done\n"
    )
    rounds = a.path("/run/rounds")
    a.run("systemd-run", "--unit=guest", "--property=RemainAfterExit=yes", "sh", "/run/guest")
    for number in range(4):
        wait_for(lambda n=number: rounds.exists() and len(rounds.read_text()) > 5 * n, "the guest")
        a.run("systemctl", "restart", TARGET)
    a.path("/run/enough").touch()
    wait_for(lambda: "SubState=exited" in a.run("systemctl", "show", "guest"), "its end", 90)
    assert "Result=success" in a.run("systemctl", "show", "guest"), a.journal()
    assert a.path(DISK).read_bytes()[: 2000 * 4096] == b"\x73" * (2000 * 4096)
    a.run("systemctl", "stop", TARGET)
    assert state(a, TARGET) == "inactive"  # and not failed


def test_a_disk_goes_and_comes_back_by_units_alone(sites: tuple[Site, Site]) -> None:
    a, b = sites
    a.run("systemctl", "start", TARGET)
    b.run("systemctl", "start", PROXY)
    io(b, "write -P 0x61 1M 64k", "flush")
    b.run("relocator", "wait", CONTROL)
    assert status(a)["state"] == "sealed"
    a.run("systemctl", "start", PROXY)  # in place of the target
    assert state(a, TARGET) == "inactive"
    assert status(a)["state"] == "standby"
    io(a, "read -P 0x61 1M 64k", "write -P 0x62 2M 64k", "flush")
    a.run("relocator", "wait", CONTROL)
    assert status(b)["state"] == "sealed"
    a.run("systemctl", "start", TARGET)
    io(a, "read -P 0x61 1M 64k", "read -P 0x62 2M 64k")
    model = source_bytes(SIZE_BYTES)
    model[1 << 20 : (1 << 20) + 65536] = b"\x61" * 65536
    model[2 << 20 : (2 << 20) + 65536] = b"\x62" * 65536
    a.run("systemctl", "stop", TARGET)
    assert a.path(DISK).read_bytes() == model


def test_the_unit_for_initiators_outlasts_a_restart_of_the_server(
    sites: tuple[Site, Site],
) -> None:
    a, _ = sites
    a.run("systemctl", "start", TARGET, ISCSI)
    assert IQN in a.run("iscsi-ls", "iscsi://127.0.0.1")
    a.run("qemu-io", "-f", "raw", LUN, "-c", "write -P 0x61 0 64k", "-c", "flush")
    a.run("systemctl", "restart", TARGET)
    said = a.run("qemu-io", "-f", "raw", LUN, "-c", "read -P 0x61 0 64k")
    assert "verification failed" not in said
    a.run("kill", "-9", str(main_pid(a, ISCSI)))
    wait_for(lambda: restarts(a, ISCSI) >= 1 and state(a, ISCSI) == "active", "the restart")
    a.run("iscsi-ls", "iscsi://127.0.0.1")
    a.run("systemctl", "stop", ISCSI)
    assert state(a, ISCSI) == "inactive"
    assert a.ask("iscsi-ls", "iscsi://127.0.0.1").returncode != 0


def test_a_guest_finds_its_disk_at_boot_and_has_it_until_it_has_shut_down(
    sites: tuple[Site, Site],
) -> None:
    """All are told at once, as the host's start and end do; the guests' before the disks' ends."""
    a, _ = sites
    for name in HYPERVISORS:
        a.path(f"/etc/systemd/system/{name}").write_text(_HYPERVISOR)
    a.run("systemctl", "daemon-reload")
    a.run("systemctl", "start", TARGET, ISCSI, *HYPERVISORS)
    a.run("systemctl", "stop", *HYPERVISORS, ISCSI, TARGET)
    units = (TARGET, ISCSI, *HYPERVISORS)
    assert {unit: state(a, unit) for unit in units} == dict.fromkeys(units, "inactive")
    assert a.path(DISK).read_bytes()[: 64 << 10] == b"\x61" * (64 << 10)
    before = a.run("systemctl", "show", "--property=Before", "--value", PROXY)
    assert set(HYPERVISORS) <= set(before.split())


def test_a_unit_that_hides_the_package_s_is_told_of(tmp_path: Path) -> None:
    with site(tmp_path, "packaged") as machine:
        machine.path("/usr/lib/systemd/system/relocator-target@.service").touch()
        said = machine.run("relocator", "units").splitlines()
    path = "/etc/systemd/system/relocator-target@.service"
    assert [line for line in said if "hides" in line] == [
        f"relocator: {path} hides the package's; remove it to use that"
    ]
