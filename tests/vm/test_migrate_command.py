"""A Linux guest with two disks moves by one command, with the ledger of what it wrote."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed.guest.prepared import Prepared
from testbed.guest.site import Server
from testbed.guest.vm import Vm
from tests.vm.moves import World, control

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
def two_disks(origin_of_two_disks: Prepared, tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, origin_of_two_disks) as world:
        yield world


def migrate(
    source: Vm, destination: Vm, disks: list[tuple[Server, Server]], *more: str
) -> dict[str, Any]:
    """`relocator migrate --json`, to its end; its report."""
    for vm in (source, destination):
        vm.release_monitor()
    argv = [sys.executable, "-m", "relocator.cli.main", "migrate", "--json"]
    argv += ["--from", str(source.qmp), "--to", str(destination.qmp)]
    argv += ["--uri", str(destination.incoming), "--bandwidth", "8G"]
    for target, proxy in disks:
        argv += ["--disk", f"{target.control},{proxy.control}"]
    done = subprocess.run([*argv, *more], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["report"]
    return report


def test_a_linux_guest_with_two_disks_moves_by_one_command(two_disks: World) -> None:
    targets = [two_disks.target("a", number) for number in range(2)]
    guest = two_disks.wake("a", *targets)
    site = two_disks.sites["b"]
    proxies = [site.proxy(target.uri, "mode=standby") for target in targets]
    other = two_disks.arriving("b", *proxies)
    report = migrate(guest, other, list(zip(targets, proxies, strict=True)), "--pre-seed")
    two_disks.arrived(other)
    assert [control(target, "status")["state"] for target in targets] == ["sealed"] * 2
    for target in targets:
        two_disks.supervisor.cut_off(target.process)
    other.wait_for_acknowledged(40)
    two_disks.prove(*proxies)
    print(json.dumps(report["downtime"]))
