"""Where guest and disks are, said to a person, and what to do next: read off what is seen."""

from relocator.moving import stages
from relocator.moving.seen import DestVm, Disks, Seen, SourceVm
from relocator.moving.stages import Stage

_AGAIN = "Run the same command again to go on"
_RESTART = (
    "To try again, start the destination's QEMU with -incoming, if it has ended, as it does with a "
    "failed migration, and run the same command"
)
_END_AND_RESTART = (
    "The destination's QEMU has a guest; if that was left there by a move that failed, end it. To "
    "try again, start one with -incoming and run the same command"
)

_MAY_RUN_ON = (
    "The guest may run on at the source: only if its QEMU there is certain to have ended, start "
    "the guest there again. Two that write the same disks destroy them"
)

_TWO_VERSIONS = (
    "There are two versions of a disk: its source was unsealed by force, and the destination's "
    "refuses writes. Decide which is to live ('Two versions' in docs/operators.md), and let the "
    "guest run there only."
)

_VERDICTS: dict[Stage, str] = {
    Stage.MEMORY: f"The guest runs at the source, with its disks; its memory is sent. {_AGAIN}.",
    Stage.PAUSED: "The guest stands still at the source: run the same command again to go on, "
    "or with --settle to let it go on there.",
    Stage.SWITCHING: f"The guest is on its way to the destination. {_AGAIN}.",
    Stage.ARRIVED: "The guest is at the destination; its writes wait there until its disks are "
    f"released. {_AGAIN}.",
    Stage.MOVED: "The guest and its disks are at the destination; the source is still needed for "
    f"the blocks that are absent. {_AGAIN}.",
    Stage.COMPLETE: "The guest and its disks are at the destination, with every block; the source "
    f"may be switched off. {_AGAIN} to compare the copy, if the source is still there.",
    Stage.RETURNING: "Writes wait at both sides. Run the same command with --settle to let the "
    "guest go on at the source.",
    Stage.LOST: "The guest is not at the destination, and the source's QEMU can't be reached. The "
    f"disks are at the source, writable there. {_MAY_RUN_ON}.",
    Stage.CONFLICT: "The guest runs at the source, but its disks belong to the destination and "
    "refuse its writes: end the source's QEMU, and start the guest at the destination.",
}


def verdict(found: Seen) -> str:
    """Where all is, and what next."""
    stage = stages.find(found)
    if any(disk.outdated for disk in found.disks):
        return f"{_TWO_VERSIONS}{_silent(found)}"
    if stage is Stage.HOME:
        return _at_home(found)
    text = _VERDICTS[stage]
    if stage in (Stage.MOVED, Stage.COMPLETE) and found.destination is not DestVm.RUNS:
        state = "QEMU can't be reached: start the guest there"
        if found.destination is DestVm.STOPPED:
            state = "guest stands still: say `cont` to its QEMU's QMP socket, or `virsh resume`"
        text = (
            f"The disks belong to the destination, whose {state}; at the source it can't write any "
            "more. The copy goes on by itself."
        )
    if stage is Stage.RETURNING and found.source is SourceVm.HOME:
        text = (
            "The guest is at the source; not all of its disks' proxies have heard of that yet. "
            "Run the same command with --settle to tell them, or without to move."
        )
    if stage is Stage.ARRIVED and found.destination is DestVm.STOPPED:
        text = (
            "The guest is at the destination and stands still; nothing runs at the source. "
            f"{_AGAIN}, once every source's disk server answers."
        )
    if stage is Stage.LOST and not any(disk.held for disk in found.disks):
        text = _lost(found)
    if stage is Stage.LOST and any(disk.held for disk in found.disks):
        text = _waits(found)
    return f"{text}{_silent(found)}"


def _waits(found: Seen) -> str:
    """The source's QEMU can't be reached, and disks are held at the destination."""
    if found.destination in (DestVm.RUNS, DestVm.STOPPED):
        return (
            "The destination's QEMU has a guest, but not all of its disks are sealed for it any "
            "more: they can be written at the source, and may have been since. It must not go on: "
            "end it. If it is certain that the guest doesn't run at the source any more, run the "
            "same command with --settle --lost source, which gives the disks back, and start the "
            "guest there."
        )
    where = "The guest is not at the destination, and the source's QEMU can't be reached"
    if found.destination is DestVm.GONE:
        where = "Neither QEMU can be reached, so the guest may be at either side"
    return (
        f"{where}: it may run there, or stand still, or be moved just now by another client. "
        "Its disks wait for that move. If it is certain that it doesn't run there any more, "
        "run the same command with --settle --lost source, which gives the disks back, and "
        "start the guest there."
    )


def _lost(found: Seen) -> str:
    """The source's QEMU can't be reached, and nothing is held at the destination."""
    unsealed = all(disk.source is None or not disk.source["seal"] for disk in found.disks)
    at_source = unsealed and all(disk.source is not None for disk in found.disks)
    arrived = found.destination in (DestVm.RUNS, DestVm.STOPPED)
    if arrived and found.together is not Disks.STANDBY:
        return (
            "The destination's QEMU has a guest, and the source's can't be reached. It is not "
            "known whether its disks wait at the destination or were given back: start the "
            "proxies that don't answer, and run the same command again."
        )
    untaken = unsealed and found.together is Disks.STANDBY
    if untaken and not at_source and found.destination is DestVm.WAITING:
        return (
            "The guest is not at the destination, which has taken none of its disks, or has given "
            "them back: nothing waits there. The disks are at the source, unless they have moved "
            "elsewhere from there; its disk servers say that they are sealed then. The guest may "
            "run on at the source: start it nowhere before they have been asked."
        )
    if not untaken or not at_source:
        return (
            "It is not known which site has the guest and its disks: the source's QEMU can't be "
            "reached, and a disk's server doesn't answer, or is sealed. Start the guest nowhere "
            "before that is certain."
        )
    if arrived:
        return (
            "The destination's QEMU has a guest, but its disks are at the source: it must not go "
            "on if anything was written there since; end it. The source's QEMU can't be reached. "
            f"{_MAY_RUN_ON}."
        )
    if found.destination is DestVm.GONE:
        return (
            "Neither QEMU can be reached. The disks are at the source, writable there; at the "
            f"destination they take no writes. {_MAY_RUN_ON}."
        )
    return _VERDICTS[Stage.LOST]


def _at_home(found: Seen) -> str:
    sealed = [disk for disk in found.disks if disk.source is not None and disk.source["seal"]]
    where = "The guest is at the source, its disks are writable there."
    if sealed:
        where = "The guest is at the source; a disk is sealed still: `relocator unseal` it there."
    ready = found.destination is DestVm.WAITING and found.together is Disks.STANDBY
    next_try = _AGAIN if ready else _RESTART
    if found.destination in (DestVm.RUNS, DestVm.STOPPED):
        next_try = _END_AND_RESTART
    return f"{where} {next_try}.{_silent(found)}"


def _silent(found: Seen) -> str:
    """Who doesn't answer."""
    silent = []
    if found.source is SourceVm.GONE:
        silent.append("the source's QEMU")
    if found.destination is DestVm.GONE:
        silent.append("the destination's QEMU")
    proxies = sum(disk.status is None for disk in found.disks)
    sources = sum(disk.source is None for disk in found.disks)
    if proxies:
        silent.append(f"{proxies} of {len(found.disks)} proxies")
    if sources:
        silent.append(f"{sources} of {len(found.disks)} sources' disk servers")
    return f" No answer comes from {' and '.join(silent)}." if silent else ""
