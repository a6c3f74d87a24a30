"""What must hold before a move begins, how QEMU is told to begin, and to forget that."""

from collections.abc import Set
from contextlib import suppress

from relocator.errors import ConfigError, RelocatorError
from relocator.moving import seen
from relocator.moving.ends import of_all
from relocator.moving.freezing import limits_of
from relocator.moving.monitor import Monitor, MonitorLostError
from relocator.moving.parties import Parties, Plan
from relocator.moving.seen import DestVm, SourceVm


def check(parties: Parties) -> None:
    """Both ends are as they must be; nothing is changed.

    Raises:
        RelocatorError: names what is not, and what to do.
    """
    for monitor in (parties.source, parties.destination):
        _answers(monitor)
    parties.freeze.check()
    there = seen.dest_vm(parties.destination)
    if there is not DestVm.WAITING:
        raise RelocatorError(
            f"the destination's QEMU is not waiting for a migration ({there}); "
            "start it with -incoming defer"
        )
    if seen.source_vm(parties.source) is not SourceVm.HOME:
        raise RelocatorError("the source's QEMU is migrating already")
    for disk, found in zip(parties.disks, parties.look().disks, strict=True):
        if found.status is None:
            disk.call("status")  # says why it can't be asked
        if not found.standby:
            raise RelocatorError(f"disk {disk.name}: its proxy is not in standby")
    of_all(parties.disks, same_disk)
    parties.limits_before = limits_of(parties.source)


def _answers(monitor: Monitor) -> None:
    """It can be asked, also if the way to it broke off unnoticed while the word was waited for.

    Raises:
        MonitorLostError: it can't.
    """
    with suppress(MonitorLostError):
        monitor.call("query-status")
        return
    monitor.call("query-status")


def same_disk(disk: object) -> None:
    """The proxy copies from the disk that was named as its source.

    Raises:
        ConfigError: it doesn't; the order of `--disk` is wrong, perhaps.
    """
    from relocator.moving.ends import Disk

    assert isinstance(disk, Disk)
    base = disk.call("identify")["base"]
    source = disk.source.identify()
    if base is None:
        raise RelocatorError(
            f"disk {disk.name}: its proxy's source is not a relocator: it can't be sealed"
        )
    if base["id"] != source["id"]:
        raise ConfigError(
            f"--disk: the proxy of {disk.name} copies from the disk {base['id']}, "
            f"not from the one given as its source ({source['id']})"
        )


def start(parties: Parties, plan: Plan) -> None:
    """Let QEMU send the guest's memory; it will pause before the switch."""
    source, destination = parties.source, parties.destination
    parties.ran_at_source = bool(source.call("query-status")["running"])
    both = {"events": True, "multifd": plan.multifd_channels > 0}
    known = destination.call("query-migrate-capabilities")
    off = {one["capability"] for one in known if not one["state"]}
    parties.switched_on = {name for name, on in both.items() if on} & off
    for monitor, wanted in (
        (source, {**both, "pause-before-switchover": True}),
        (destination, both),
    ):
        monitor.call(
            "migrate-set-capabilities",
            capabilities=[{"capability": name, "state": on} for name, on in wanted.items()],
        )
        if plan.multifd_channels:
            monitor.call("migrate-set-parameters", multifd_channels=plan.multifd_channels)
    limits = parties.freeze.first_limits(parties.limits_before | plan.limits)
    source.call("migrate-set-parameters", **limits)
    if not destination.call("query-migrate").get("socket-address"):
        destination.call("migrate-incoming", uri=plan.incoming)
    source.call("migrate", uri=plan.uri)


def undo(parties: Parties) -> None:
    """The source's QEMU forgets what `start` asked of it: another client's migration would pause
    for a word that nobody says, or never end. One that can't be asked keeps it. Where nobody knows
    what limits it had, those that end no migration are undone.
    """
    with suppress(RelocatorError):
        _switch_off(parties.source, {"pause-before-switchover", "multifd"})
        limits = parties.limits_before or limits_of(parties.source)
        parties.source.call("migrate-set-parameters", **limits)


def undo_there(parties: Parties, plan: Plan) -> None:
    """The destination's QEMU, which has the guest now, forgets it, too: for who moves that on.

    A process that came later knows only what it would have asked for itself.
    """
    off = parties.switched_on | ({"multifd"} if plan.multifd_channels else set())
    if off:
        with suppress(RelocatorError):
            _switch_off(parties.destination, off)


def _switch_off(monitor: Monitor, capabilities: Set[str]) -> None:
    monitor.call(
        "migrate-set-capabilities",
        capabilities=[{"capability": name, "state": False} for name in sorted(capabilities)],
    )
