"""A guest moves with its disks by one command."""

from pathlib import Path

import pytest

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
        assert 0 < report["downtime"]["total_s"] < 60
        assert report["downtime"]["first_read_answered_s"] > 0
        assert report["downtime"]["first_write_answered_s"] > 0
        assert len(report["disks"]) == disks
        assert all(disk["verified_blocks"] > 0 for disk in report["disks"].values())
