"""One cap for several: in bytes, on a clock of the test's own, with real files and real locks."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from relocator.copying.sharing import BURST_S, MOST_MEMBERS, STALE_S, Share
from relocator.copying.timetable import Timetable
from relocator.errors import ConfigError

FOUND = "from pathlib import Path; from relocator.copying.sharing import Share; "
RATE = 8e6  # a million bytes a second


class Member:
    """Sends requests of `length` bytes whenever it may, `pause_s` apart at least."""

    def __init__(self, path: Path, length: int, pause_s: float = 0.0) -> None:
        self.share = Share(path)
        self.length, self.pause_s = length, pause_s
        self.at_s, self.sent_bytes = 100.0, 0

    def step(self) -> None:
        if (delay_s := self.share.delay_s(self.at_s, RATE)) > 0:
            self.at_s += delay_s
            return
        self.share.take(self.length, self.at_s, RATE)
        self.sent_bytes += self.length
        self.at_s += max(self.pause_s, 1e-4)


def run(members: list[Member], until_s: float) -> None:
    """Let each take its step when it is its time."""
    while (first := min(members, key=lambda one: one.at_s)).at_s < until_s:
        first.step()


def test_the_sum_keeps_the_cap_and_parts_are_equal_whatever_the_requests(tmp_path: Path) -> None:
    members = [Member(tmp_path / "group", length) for length in (8 << 10, 32 << 10, 128 << 10)]
    run(members, 120.0)
    sent = [one.sent_bytes for one in members]
    assert 19e6 < sum(sent) <= 1e6 * (20 + BURST_S) + 3 * (128 << 10)
    assert max(sent) - min(sent) < 1 << 20


def test_what_one_cannot_use_goes_to_the_others(tmp_path: Path) -> None:
    slow, fast = Member(tmp_path / "group", 10_000, pause_s=0.1), Member(tmp_path / "group", 65536)
    run([slow, fast], 120.0)
    assert 1e6 < slow.sent_bytes <= 2e6  # each request waits for one of the other's
    assert slow.sent_bytes + fast.sent_bytes == pytest.approx(20e6, rel=0.02)


def test_who_was_slow_or_comes_late_does_not_starve_the_others(tmp_path: Path) -> None:
    slow, fast = Member(tmp_path / "group", 10_000, pause_s=0.1), Member(tmp_path / "group", 65536)
    run([slow, fast], 120.0)
    slow.pause_s = 0.0
    late = Member(tmp_path / "group", 65536)
    late.at_s = 120.0
    before = [one.sent_bytes for one in (slow, fast, late)]
    run([slow, fast, late], 130.0)
    after = [one.sent_bytes for one in (slow, fast, late)]
    gained = [end - start for start, end in zip(before, after, strict=True)]
    assert min(gained) > 2e6  # of 10e6 / 3: no more than a second's worth is caught up


def test_a_member_that_dies_while_it_waits_holds_nothing(tmp_path: Path) -> None:
    dead, alive = Member(tmp_path / "group", 65536), Member(tmp_path / "group", 65536)
    run([dead, alive], 102.0)
    dead.share.delay_s(102.0, RATE)  # it waits, was given least, and never comes again
    before = alive.sent_bytes
    run([alive], 112.0)
    assert alive.sent_bytes - before > 1e6 * (10 - STALE_S) - (1 << 18)


def test_who_does_not_get_the_lock_never_waits_for_it_and_owes(tmp_path: Path) -> None:
    one = Member(tmp_path / "group", 1_000_000)
    one.step()
    holder = os.open(tmp_path / "group", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert 0 < one.share.delay_s(105.0, RATE) < STALE_S
    one.share.take(1_000_000, 105.0, RATE)
    one.share.set_timetable(Timetable((0, 1e6)))
    assert one.share.timetable.rate_bits_per_s(0.0) is None
    os.close(holder)
    assert one.share.delay_s(105.0, RATE) > 0  # paid now
    assert one.share.timetable.rate_bits_per_s(0.0) == 1e6


def test_the_rate_is_the_groups_and_stays_in_the_file(tmp_path: Path) -> None:
    one, other = Share(tmp_path / "group"), Share(tmp_path / "group")
    one.set_timetable(Timetable((420, 20e6), (1410, None)))
    for share in (one, other, Share(tmp_path / "group")):
        assert share.timetable.entries == [(420, 20e6), (1410, None)]


def test_after_a_reboot_the_rate_holds_and_the_past_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Member(tmp_path / "group", 10**9)
    one.share.set_timetable(Timetable((0, RATE)))
    assert one.share.timetable.rate_bits_per_s(0.0) == RATE
    one.step()
    assert one.share.delay_s(101.0, RATE) > 0
    monkeypatch.setattr("relocator.copying.sharing.boot_id", lambda: "b" * 36)
    again = Share(tmp_path / "group")
    assert again.delay_s(1.0, RATE) == 0.0
    assert (again.timetable.rate_bits_per_s(0.0), again.members(1.0)) == (RATE, 1)


def test_there_may_have_been_any_number_of_members(tmp_path: Path) -> None:
    members = [Member(tmp_path / "group", 1000) for _ in range(MOST_MEMBERS + 5)]
    for number, one in enumerate(members):
        one.at_s += number * STALE_S * 2
        one.step()
        assert one.sent_bytes == 1000


def test_another_rate_holds_for_what_is_owed_too(tmp_path: Path) -> None:
    one, other = Share(tmp_path / "group"), Share(tmp_path / "group")
    one.take(1 << 20, 100.0, 1e5)  # 84 s
    for share in (one, other, one):
        assert 0.01 < share.delay_s(100.0, 1e8) < 0.1
    assert other.delay_s(100.1, 1e8) == 0.0
    one.take(10**9, 200.0, 1e50)
    assert one.delay_s(200.1, 1e8) == 0.0  # as good as no cap
    one.take(1 << 20, 300.0, 1e8)
    assert other.delay_s(300.0, 1e5) > 0
    assert other.delay_s(330.0, 1e5) > 0


def test_members_that_see_a_new_rate_at_other_moments_do_not_lose_what_is_owed(
    tmp_path: Path,
) -> None:
    one, other = Share(tmp_path / "group"), Share(tmp_path / "group")
    one.take(10**6, 100.0, RATE)
    for _ in range(1000):
        other.delay_s(100.0, 1e9)
        one.delay_s(100.0, RATE)
    assert one.delay_s(100.9, RATE) > 0
    assert one.delay_s(101.0, RATE) == 0.0


@pytest.mark.parametrize("length", [0, 100, 3648])
def test_zeros_are_what_a_founder_that_died_has_left(tmp_path: Path, length: int) -> None:
    (tmp_path / "group").write_bytes(bytes(length))
    one = Member(tmp_path / "group", 1000)
    one.step()
    assert (one.sent_bytes, one.share.members(100.0)) == (1000, 1)
    one.share.set_timetable(Timetable((0, RATE)))
    assert one.share.timetable.rate_bits_per_s(0.0) == RATE
    assert Share(tmp_path / "group").timetable.rate_bits_per_s(0.0) == RATE


@pytest.mark.parametrize("sparse", [False, True])
def test_a_full_file_system_is_an_error_and_no_signal(tmp_path: Path, sparse: bool) -> None:
    """Also one that was filled after the file was made, by an older version, with holes."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "group", tmp_path], check=True)
    try:
        with (tmp_path / "group").open("wb") as file:
            file.truncate(3648 if sparse else 0)
        with pytest.raises(OSError, match="No space"), (tmp_path / "full").open("wb") as file:
            file.write(bytes(1 << 20))
        founded = [sys.executable, "-c", f"{FOUND}Share(Path('{tmp_path}/group'))"]
        done = subprocess.run(founded, capture_output=True, text=True, check=False)
        assert done.stderr.splitlines()[-1].endswith("No space left on device")
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_another_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(b"precious")
    for content in (b"precious", bytes(4096), bytes(3640) + b"precious", b"relogrp1"):
        (tmp_path / "disk.img").write_bytes(content)
        with pytest.raises(
            ConfigError, match=r"rate-group=.*disk\.img: is another file; give the path"
        ):
            Share(tmp_path / "disk.img")
        assert (tmp_path / "disk.img").read_bytes() == content
    with pytest.raises(ConfigError, match=r"rate-group=/nowhere/group: .*No such file"):
        Share(Path("/nowhere/group"))
