"""A QEMU of this machine, by its monitor's socket."""

import atexit
from pathlib import Path

from relocator.moving.address import Address
from relocator.moving.monitor import Event, Monitor
from relocator.moving.reach import Reach
from testbed.hosts.supervise import ProcessError


def connect(path: Path) -> Monitor:
    """A connection to the QEMU that listens there; closed with this process, if not before."""
    monitor = Monitor(f"QEMU at {path}", Address(str(path), path=str(path)), Reach(path.parent))
    monitor.connect()
    atexit.register(monitor.close)
    return monitor


def await_event(
    monitor: Monitor, name: str, timeout_s: float, *statuses: str, since: int = 0
) -> Event:
    """The first event of that name, with one of the `statuses` if any are given, from number
    `since` on; ProcessError if none comes in time."""

    def wanted(event: Event) -> bool:
        return event.name == name and (not statuses or event.data["status"] in statuses)

    found = monitor.await_event(wanted, timeout_s, since)
    if found is None:
        raise ProcessError(f"{monitor.name}: no {' '.join([name, *statuses])} in {timeout_s:g} s")
    return found
