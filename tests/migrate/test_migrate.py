"""A guest moves with its disks by one command."""

from pathlib import Path

import pytest

from testbed.hosts.qmp import connect
from tests.migrate.sites import Sites


@pytest.mark.parametrize("disks", [1, 2])
def test_a_guest_moves_with_its_disks_and_goes_on(tmp_path: Path, disks: int) -> None:
    with Sites(tmp_path, disks) as sites:
        report = sites.moved("--quit-source")
        sites.destination.goes_on()
        assert not sites.source.alive
        assert sites.states() == [("sealed", "complete")] * disks
        for server in sites.targets:
            server.kill()
        sites.destination.goes_on()
        sites.destination.kill()
        sites.prove(sites.source, sites.destination, site=sites.b)
        parts = report["downtime"]
        assert 0 < parts["total_s"] < 60
        assert parts["takeover_s"] > 0
        summed_s = parts["drain_s"] + parts["takeover_s"] + parts["state_s"]
        assert summed_s == pytest.approx(parts["total_s"], abs=1e-5)
        assert report["downtime"]["first_read_answered_s"] > 0
        assert report["downtime"]["first_write_answered_s"] > 0
        assert len(report["disks"]) == disks
        assert all(disk["verified_blocks"] > 0 for disk in report["disks"].values())


def test_a_guest_that_came_by_several_connections_can_leave_by_one(tmp_path: Path) -> None:
    with Sites(tmp_path, 1) as sites:
        sites.moved("--multifd", "4")
        sites.destination.goes_on()
        monitor = connect(sites.destination.qmp)
        known = monitor.call("query-migrate-capabilities")
        monitor.close()
        assert not {one["capability"] for one in known if one["state"]} & {"multifd", "events"}
