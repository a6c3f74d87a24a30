"""Every place of a move, and everything that may go wrong there.

Whatever it is: the disks can be written at one site, all at the same; the guest goes on there,
unless its own QEMU was killed; the message says where; and the same command run again, with what
had died started again, brings the guest to the destination with nothing lost.
"""

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.migrate.sites import Sites, settled_owner, stopped
from tests.support.command import impatient

# In the order in which a move comes by; at the first of AFTER the release has been sent.
BEFORE = ["starting", "memory", "paused", "continued", "switching", "arrived", "sealed"]
AFTER = ["moved", "released", "complete"]
# Here the guard of a mover that was killed goes forward: the guest has been sent.
GOES_ON = ["continued", "switching", "arrived", "sealed"]
PLACES = BEFORE + AFTER


def interrupt(sites: Sites, process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


def kill(sites: Sites, process: subprocess.Popen[str]) -> None:
    process.kill()


def kill_source(sites: Sites, process: subprocess.Popen[str]) -> None:
    sites.source.kill()
    go_on(process)


def kill_destination(sites: Sites, process: subprocess.Popen[str]) -> None:
    sites.destination.kill()
    go_on(process)


def kill_target(sites: Sites, process: subprocess.Popen[str]) -> None:
    sites.targets[-1].kill()
    go_on(process)
    time.sleep(0.5)
    sites.targets[-1] = sites.target(sites.disks[-1])


def kill_proxy(sites: Sites, process: subprocess.Popen[str]) -> None:
    sites.proxies[-1].kill()
    go_on(process)
    time.sleep(0.5)
    sites.proxies[-1] = sites.proxy(sites.disks[-1])


def silence_target(sites: Sites, process: subprocess.Popen[str]) -> None:
    """For longer than a proxy waits."""
    sites.targets[-1].process.send_signal(signal.SIGSTOP)
    try:
        go_on(process)
        time.sleep(2.5)
    finally:
        sites.targets[-1].process.send_signal(signal.SIGCONT)


def go_on(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


Break = Callable[[Sites, subprocess.Popen[str]], None]
BREAKS: list[Break] = [
    interrupt,
    kill,
    kill_source,
    kill_destination,
    kill_target,
    kill_proxy,
    silence_target,
]


def _cases() -> list[Any]:
    """All pairs, for `make matrix`; `make test` runs a fifth, with each place and each break."""
    return [
        pytest.param(place, break_it, id=f"{place}-{break_it.__name__}", marks=marks)
        for at, place in enumerate(PLACES)
        for nth, break_it in enumerate(BREAKS)
        for marks in [[pytest.mark.matrix] if (at + nth) % 5 else []]
    ]


@pytest.mark.parametrize(("place", "break_it"), _cases())
def test_one_site_has_the_guest_whatever_fails(tmp_path: Path, place: str, break_it: Break) -> None:
    keys = ("retry-timeout=1",) if break_it is silence_target else ()
    environment = impatient(tmp_path) if break_it is kill_proxy else None  # its QEMU hangs
    with Sites(tmp_path, 2, *keys) as sites:
        with stopped(sites, place, environment) as process:
            break_it(sites, process)
            out, err = process.communicate(timeout=60)
        said = out + err
        assert "Traceback" not in said, said
        where = settled_owner(sites)
        forward = place in AFTER or (break_it is kill and place in GOES_ON)
        if forward or process.returncode == 0:
            assert where == "destination", said
        else:
            assert where == "source", said
        if process.returncode:
            assert f"at the {where}" in said, said
        guest = sites.source if where == "source" else sites.destination
        if not guest.alive:
            sites.prove(
                sites.source, sites.destination, site=sites.a if where == "source" else sites.b
            )
            return
        guest.goes_on()
        go_on_again(sites, where, process.returncode)
        sites.destination.goes_on()
        sites.destination.kill()
        sites.prove(sites.source, sites.destination, site=sites.b)


def go_on_again(sites: Sites, where: str, status: int) -> None:
    """The same command once more, with another QEMU at the destination if that has ended."""
    if status == 0:
        return
    if where == "source":
        sites.new_destination()
    if where == "destination" and not sites.source.alive:
        again = sites.migrate("--lost", "source")
    else:
        again = sites.migrate()
    assert again.returncode == 0, again.stdout + again.stderr
