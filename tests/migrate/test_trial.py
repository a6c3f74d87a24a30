"""A guest is tried at the destination before the real one moves, from throwaway copies."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.migrate.sites import Sites, wait_for
from tests.support.bootguest import Qemu


@pytest.mark.parametrize("disks", [2])
def test_a_trial_boots_from_one_instant_and_leaves_no_trace(tmp_path: Path, disks: int) -> None:
    with Sites(tmp_path, disks) as sites:
        controls = [str(proxy.control_path) for proxy in sites.proxies]
        argv = [sys.executable, "-m", "relocator.cli.main", "try", *controls]
        argv += ["--directory", str(tmp_path), "--from", str(sites.source.qmp)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                told = [process.stdout.readline() for _ in sites.disks]
                assert all(": epoch " in line for line in told), told
                before = [sites.image(sites.b, at).read_bytes() for at in sites.disks]
                # One instant: the guest writes a number to all disks before it goes on.
                numbers = [newest(image) for image in before]
                assert max(numbers) - min(numbers) <= 1
                copies = [tmp_path / f"proxy{at}.try" for at in sites.disks]
                trial = Qemu(tmp_path, "trial", copies)
                try:
                    trial.goes_on(20)
                    assert trial.numbers[0] == 1  # booted, not moved
                    assert "D" not in trial.said
                finally:
                    trial.kill()
                sites.source.goes_on()  # the real one never stopped for long
                assert [sites.image(sites.b, at).read_bytes() for at in sites.disks] == before
            finally:
                process.terminate()
                process.wait(20)
        assert process.returncode == 130
        assert not list(tmp_path.glob("*.try"))
        wait_for(
            lambda: all(
                proxy.control.call("status")["background"] == "on" for proxy in sites.proxies
            ),
            "the copies to go on",
        )
        sites.moved()
        sites.destination.goes_on()
        sites.destination.kill()
        sites.prove(sites.source, sites.destination, site=sites.b)


def newest(image: bytes) -> int:
    return max(int.from_bytes(image[4096 * at :][:4], "little") for at in range(1, 65))


def test_a_trial_ends_when_the_disk_is_taken_over(tmp_path: Path) -> None:
    with Sites(tmp_path, 1) as sites:
        argv = [sys.executable, "-m", "relocator.cli.main", "try"]
        argv += [str(sites.proxies[0].control_path), "--directory", str(tmp_path)]
        argv += ["--from", str(sites.source.qmp)]
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            sites.moved()
            _, err = process.communicate(timeout=20)
        assert process.returncode == 1
        assert "the trial is over" in err
