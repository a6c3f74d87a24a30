"""The table of a move: everything that can be seen has one stage, and none is unsafe."""

from itertools import product
from typing import Any

import pytest

from relocator.moving import stages
from relocator.moving.seen import DestVm, Disks, DiskSeen, Seen, SourceVm
from relocator.moving.stages import ABOUT, NEXT, REVOCABLE, Stage
from relocator.moving.verdict import verdict

_HERE: dict[str, Any] = {"seal": None, "moved": False}
_SEALED: dict[str, Any] = {"seal": "token", "moved": False}
_OTHER: dict[str, Any] = {"seal": "another's", "moved": False}
_MOVED: dict[str, Any] = {"seal": "token", "moved": True}


def status(state: str, *, held: bool = False, confirmed: bool = False) -> dict[str, Any]:
    return {
        "state": state,
        "held": held,
        "error": None,
        "asks_for": "token",
        "seal_confirmed": confirmed or state in ("active", "complete"),
    }


# All that a disk can be, with what its source can be then; None: it doesn't answer.
DISKS = [
    DiskSeen(proxy, source)
    for proxy, sources in (
        (status("standby"), (_HERE, _SEALED, None)),
        (status("activating", held=True), (_HERE, _SEALED, None)),
        (status("activating", held=True, confirmed=True), (_HERE, _SEALED, _OTHER, None)),
        (status("activating"), (_HERE, _SEALED, _MOVED, None)),
        (status("active"), (_SEALED, _MOVED, None)),
        (status("complete"), (_SEALED, _MOVED, None)),
        (status("outdated"), (_HERE, _SEALED)),
        (None, (_HERE, _SEALED, _MOVED, None)),
    )
    for source in sources
]
EVERYTHING = [
    Seen(here, there, disks)
    for here, there, disks in product(SourceVm, DestVm, product(DISKS, DISKS))
]


def test_whatever_is_seen_has_a_stage_and_words_for_a_person() -> None:
    for seen in EVERYTHING:
        assert stages.find(seen) in ABOUT
        assert verdict(seen).endswith(".")


def test_no_verdict_chooses_between_two_versions_of_a_disk() -> None:
    for seen in EVERYTHING:
        chosen = "There are two versions" not in verdict(seen)
        assert chosen is not any(disk.outdated for disk in seen.disks), seen


def test_a_guest_that_was_left_at_the_destination_is_told() -> None:
    for seen in EVERYTHING:
        if stages.find(seen) is Stage.HOME:
            left = seen.destination in (DestVm.RUNS, DestVm.STOPPED)
            assert ("QEMU has a guest" in verdict(seen)) is left, seen


def test_who_can_not_be_asked_is_not_said_to_be_nowhere() -> None:
    """A guest is to be started at the source only if all disks are known to be there."""
    start = "start the guest"
    for seen in EVERYTHING:
        if stages.find(seen) is Stage.LOST and not any(disk.held for disk in seen.disks):
            unsealed = all(
                disk.source is not None and not disk.source["seal"] for disk in seen.disks
            )
            sure = unsealed and seen.together is Disks.STANDBY
            assert (start in verdict(seen)) is sure, seen


def test_a_guest_left_at_the_destination_does_not_go_on_on_disks_given_back() -> None:
    for seen in EVERYTHING:
        gone = seen.source is SourceVm.GONE and seen.destination in (DestVm.RUNS, DestVm.STOPPED)
        if gone and seen.together in (Disks.STANDBY, Disks.UNKNOWN):
            assert stages.find(seen) is Stage.LOST, seen


def test_no_disk_is_released_whose_source_was_unsealed_without_its_proxy() -> None:
    """The proxy believes still that it is sealed."""
    for seen in EVERYTHING:
        undone = any(disk.held and disk.given_back for disk in seen.disks)
        if undone and not any(disk.released for disk in seen.disks):
            assert stages.find(seen) in (Stage.RETURNING, Stage.LOST), seen


def test_a_disk_that_may_have_been_written_at_the_destination_never_goes_back() -> None:
    for seen in EVERYTHING:
        if any(disk.released for disk in seen.disks):
            assert stages.find(seen) in (Stage.MOVED, Stage.COMPLETE, Stage.CONFLICT), seen


def test_no_disk_is_released_while_the_guest_may_run_at_the_source() -> None:
    may_run = (SourceVm.HOME, SourceVm.SENDING, SourceVm.PAUSED, SourceVm.LAST)
    for seen in EVERYTHING:
        if seen.source in may_run and not any(disk.released for disk in seen.disks):
            assert stages.find(seen) not in (Stage.ARRIVED, Stage.MOVED, Stage.COMPLETE), seen


def test_a_sealed_source_never_has_its_guest_run_on() -> None:
    for seen in EVERYTHING:
        if any(disk.held for disk in seen.disks):
            assert stages.find(seen) is not Stage.HOME, seen
            if any(disk.sealed for disk in seen.disks):
                assert stages.find(seen) is not Stage.MEMORY, seen


def test_a_move_is_left_only_where_the_guest_does_not_wait_for_a_word() -> None:
    for seen in EVERYTHING:
        if stages.at_rest(seen):
            stands_still = (SourceVm.PAUSED, SourceVm.LAST, SourceVm.SENT)
            given = seen.together in (Disks.RELEASED, Disks.COMPLETE)
            assert given or seen.source not in stands_still, seen


@pytest.mark.parametrize("stage", NEXT)
def test_a_failure_leads_back_exactly_as_long_as_the_source_owns_the_disks(stage: Stage) -> None:
    owned_there = ABOUT[stage].owner == "destination"
    if stage in (Stage.HOME, Stage.RETURNING):  # nothing has begun; it is the way back itself
        assert stage not in REVOCABLE
    else:
        assert (stage in REVOCABLE) != owned_there
        assert NEXT[stage].get("failed", Stage.RETURNING) is Stage.RETURNING


def test_every_stage_leads_to_the_end_or_home() -> None:
    for start in NEXT:
        reached, seen = {start}, {start}
        while reached:
            reached = {after for stage in reached for after in NEXT.get(stage, {}).values()} - seen
            seen |= reached
        assert Stage.DONE in seen
