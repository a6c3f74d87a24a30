"""Whether a move would succeed, and how long it would take: asked, and measured, before it begins.

Nothing is changed, but the measurement takes bandwidth for some seconds a disk. What is asked is
what a person would: does everybody answer, is it the right disk, is there room, do versions and
memory fit, is the way encrypted, do the clocks agree; and what does the way from the proxy to its
source bring.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from relocator.errors import RelocatorError
from relocator.moving import seen
from relocator.moving.begin import same_disk
from relocator.moving.ends import Disk
from relocator.moving.freezing import Freeze
from relocator.moving.monitor import Monitor
from relocator.moving.parties import Parties
from relocator.moving.seen import DestVm, SourceVm

MEASURE_S = 60.0
_CLOCKS_S = 1.0
_LEAST_MTU = 1280
_DIRTY_S = 1


@dataclass(frozen=True)
class Check:
    """One question: what about, whether all is well (None: worth knowing, no obstacle), and what
    was found."""

    about: str
    ok: bool | None
    found: str


@dataclass(frozen=True)
class Estimate:
    """How long a move takes, in seconds; None: it can't be told. The range is from the spread of
    the measured rate."""

    expected_s: float | None
    least_s: float | None = None
    most_s: float | None = None


@dataclass
class Preflight:
    """All that was found."""

    checks: list[Check]
    estimate: Estimate

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way."""
        return all(check.ok is not False for check in self.checks)


def preflight(parties: Parties) -> Preflight:
    """Ask everybody, and measure."""
    checks = [*_qemus(parties), *_agent(parties)]
    absent_bytes, rates, statuses = 0, [], {}
    for disk in parties.disks:
        found, status, measured = _disk(disk)
        checks += found
        rates.append(measured)
        if status is not None:
            statuses[disk.name] = status
            absent_blocks = status["total_blocks"] - status["present_blocks"]
            absent_bytes += absent_blocks * status["block_bytes"]
    checks += room(statuses)
    with suppress(RelocatorError):
        absent_bytes += _memory_bytes(parties.source)
    return Preflight(checks, estimate(absent_bytes, rates))


def estimate(size_bytes: int, rates: Sequence[Sequence[float]]) -> Estimate:
    """How long so much takes at the measured rates, of which each disk gave several.

    All disks share the link, so the fastest disk's rates tell what it carries.
    """
    told = [measured for measured in rates if measured and min(measured) > 0]
    if not told:
        return Estimate(None)
    best = max(told, key=fmean)
    bits = size_bytes * 8
    return Estimate(bits / fmean(best), bits / max(best), bits / min(best))


def _qemus(parties: Parties) -> Iterator[Check]:
    """Both QEMUs, and whether they fit."""
    source, there = parties.source, parties.destination
    states = {
        source: (seen.source_vm, SourceVm.HOME, "runs, and sends nothing"),
        there: (seen.dest_vm, DestVm.WAITING, "waits for a guest"),
    }
    answers = True
    for monitor, (look, wanted, well) in states.items():
        try:
            monitor.connect()
            state = look(monitor)
        except RelocatorError as error:
            answers = False
            yield Check(monitor.name, False, str(error))
            continue
        yield Check(monitor.name, state is wanted, well if state is wanted else f"is {state}")
    if answers:
        yield from _fit(source, there)


def _agent(parties: Parties) -> Iterator[Check]:
    """The guest's agent, where the guest is to be frozen."""
    if not isinstance(parties.freeze, Freeze):
        return
    try:
        parties.freeze.check(thaw=False)
    except RelocatorError as error:
        yield Check("the guest's agent", False, str(error))
    else:
        yield Check("the guest's agent", True, "answers, and can freeze the file systems")


def _fit(source: Monitor, there: Monitor) -> Iterator[Check]:
    """Versions, machines and memory of two QEMUs that answer."""
    versions = [_version(monitor) for monitor in (source, there)]
    named = " to ".join(".".join(map(str, version)) for version in versions)
    yield Check("QEMU's versions", versions[1] >= versions[0], named)
    sizes = [_memory_bytes(monitor) for monitor in (source, there)]
    yield Check("memory", sizes[0] == sizes[1], f"{sizes[0] >> 20} MiB to {sizes[1] >> 20} MiB")
    kinds = [
        str(monitor.call("qom-get", path="/machine", property="type"))
        for monitor in (source, there)
    ]
    yield Check("machine type", kinds[0] == kinds[1], " to ".join(kinds))
    encrypted = bool(source.call("query-migrate-parameters").get("tls-creds"))
    how = "encrypted" if encrypted else "in clear, unless --uri goes through a tunnel"
    yield Check("the memory's way", None, how)
    dirty = _dirty_bytes_per_s(source)
    if dirty is not None:
        yield Check("memory written by the guest", None, f"{dirty / (1 << 20):.0f} MiB/s")


def _version(monitor: Monitor) -> tuple[int, int, int]:
    found = monitor.call("query-version")["qemu"]
    return found["major"], found["minor"], found["micro"]


def _memory_bytes(monitor: Monitor) -> int:
    return int(monitor.call("query-memory-size-summary")["base-memory"])


def _dirty_bytes_per_s(monitor: Monitor) -> float | None:
    """How fast the guest changes its memory; None where this QEMU can't tell."""
    try:
        monitor.call("calc-dirty-rate", calc_time=_DIRTY_S)
        give_up_s = time.monotonic() + 5 * _DIRTY_S
        while time.monotonic() < give_up_s:
            found = monitor.call("query-dirty-rate")
            if found["status"] == "measured":
                return float(found["dirty-rate"]) * (1 << 20)
            time.sleep(0.1)
    except RelocatorError:
        pass
    return None


def _disk(disk: Disk) -> tuple[list[Check], dict[str, Any] | None, list[float]]:
    """A disk's checks, its proxy's status if it is the right one, and the measured rates."""
    about = f"disk {disk.name}"
    try:
        status = disk.call("status")
        same_disk(disk)
    except RelocatorError as error:
        return [Check(about, False, str(error))], None, []
    checks = [_standby(about, status)]
    try:
        way = disk.call("measure", MEASURE_S)
    except RelocatorError as error:
        return [*checks, Check(about, False, str(error))], status, []
    return [*checks, *_way(about, way)], status, way["rates_bits_per_s"]


def _standby(about: str, status: dict[str, Any]) -> Check:
    if status["state"] != "standby":
        return Check(about, False, f"its proxy is {status['state']}, not in standby")
    share = 100 * status["present_blocks"] / max(1, status["total_blocks"])
    return Check(about, True, f"copies from the right source; {share:.0f} % is there")


def room(statuses: Mapping[str, dict[str, Any]]) -> Iterator[Check]:
    """Whether there is room for what has none yet, by the names of disks and their statuses.

    Disks whose images are on one file system share what is free there.
    """
    sharing: dict[str, list[str]] = {}
    for name, status in statuses.items():
        if status["free_bytes"] is None or status["unallocated_bytes"] == 0:
            yield Check(f"disk {name}: room", True, "reserved")
        else:
            sharing.setdefault(status.get("file_system", name), []).append(name)
    for names in sharing.values():
        free = min(statuses[name]["free_bytes"] for name in names)
        needed = sum(statuses[name]["unallocated_bytes"] for name in names)
        about = f"disk {names[0]}: room"
        if len(names) > 1:
            about = f"disks {', '.join(names)}: room on one file system"
        found = f"{needed >> 20} MiB needed, {free >> 20} MiB free"
        yield Check(about, needed <= free, f"{found}; not reserved: `relocator reserve` does that")


def _way(about: str, way: dict[str, Any]) -> Iterator[Check]:
    """What was measured on the way from the proxy to its source."""
    rates = way["rates_bits_per_s"]
    trip_ms = way["round_trip_s"] * 1e3
    measured = f"{trip_ms:.1f} ms, {fmean(rates) / 1e6:.0f} Mbit/s"
    yield Check(f"{about}: way", True, f"{measured}, {len(rates)} measurements")
    yield Check(f"{about}: TLS", None, "encrypted" if way["encrypted"] else "in clear")
    keyless = "none: whoever reaches the source's port can seal the disk; see `relocator keygen`"
    yield Check(f"{about}: key", None, "is asked for" if way["key"] else keyless)
    mtu, ahead_s = way["mtu_bytes"], way["clock_ahead_s"]
    if mtu is not None:
        yield Check(f"{about}: MTU", mtu >= _LEAST_MTU, f"{mtu} bytes")
    if ahead_s is not None:
        well = True if abs(ahead_s) < _CLOCKS_S + way["round_trip_s"] else None
        yield Check(f"{about}: clocks", well, f"differ by {abs(ahead_s) * 1e3:.0f} ms")
