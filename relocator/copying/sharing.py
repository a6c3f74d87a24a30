"""One cap for several proxies of a host (`rate-group=PATH`): a token bucket in a file.

The file is mapped by every member. It holds the group's rate or timetable, the moment from which on
something may be sent again (as in `TokenBucket`) and the rate by which that was reckoned, and a
slot a member: how much it was given, when it was seen last, and since when it waits. Among those
that wait the turn is that of whoever was given least, give or take `QUANTUM_BYTES`. Who can't use
its turn leaves it to the others, and is behind them by `CREDIT_S` seconds' worth at most. A member
that hasn't asked for `STALE_S` doesn't count, so one that died holds nothing.

A lock on the file (flock) guards all of it. It is never waited for: it is held for microseconds,
but its holder may be stopped, and a guest must not wait for that. Who doesn't get it looks again
in a moment, and what was sent meanwhile is owed. Times are of the monotonic clock, which a host's
processes share; the boot id says whether they are of this boot.
"""

import fcntl
import mmap
import os
import secrets
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from relocator.copying.timetable import MOST_ENTRIES, NO_CAP, Timetable
from relocator.errors import ConfigError
from relocator.store.maps import boot_id

MOST_MEMBERS = 64
BURST_S = 0.05
STALE_S = 0.5
LOOK_AGAIN_S = 0.005
QUANTUM_BYTES = 256 << 10
CREDIT_S = 1.0
MEMBER_S = 5.0

_HEADER = struct.Struct("<8s36sfdQ")  # magic, boot id, and `Header`
_ENTRY = struct.Struct("<Qd")  # minute of the day; bits a second, -1 for no cap
_SLOT = struct.Struct("<QddQ")  # who (0: nobody), waits as of, seen as of, bytes given
_MAGIC = b"relogrp1"
_SLOTS_AT = _HEADER.size + MOST_ENTRIES * _ENTRY.size
_FILE_BYTES = _SLOTS_AT + MOST_MEMBERS * _SLOT.size
_SAME_RATE = 1e-6  # the header's has 24 bits,
_MOST_RATE = 1e38  # and an end


class Header(NamedTuple):
    """What is owed by all: until when, by which rate (0: an older version's, unknown)."""

    rate_bits_per_s: float
    free_s: float
    entries: int


class Slot(NamedTuple):
    """A member."""

    who: int = 0
    waits_s: float = float("-inf")
    seen_s: float = float("-inf")
    given_bytes: int = 0


class Share:
    """One member's part in a group. Not thread-safe: the pacer's lock guards it."""

    def __init__(self, path: Path) -> None:
        """Join the group of `path`, or found it.

        Raises:
            ConfigError: it can't be opened, or isn't a group's file.
        """
        self.path = path
        self._who = secrets.randbits(63) | 1
        self._at = 0
        self._owed_bytes = 0
        self._timetable = NO_CAP
        self._entries = b""
        self._wanted: Timetable | None = None
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        except OSError as error:
            raise ConfigError(f"rate-group={path}: {error}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            self._map = self._mapped()
            fcntl.flock(self._fd, fcntl.LOCK_UN)
        except (OSError, ValueError) as error:
            os.close(self._fd)
            raise ConfigError(f"rate-group={path}: {error}") from error

    def _mapped(self) -> mmap.mmap:
        """The file, made usable; under the lock."""
        found = os.pread(self._fd, _FILE_BYTES + 1, 0)
        ours = len(found) == _FILE_BYTES and found.startswith(_MAGIC)
        if len(found) > _FILE_BYTES or not (ours or found.count(0) == len(found)):
            raise ValueError("is another file; give the path of a group's file, or of none")
        os.posix_fallocate(self._fd, 0, _FILE_BYTES)  # else a full file system is a SIGBUS
        mapped = mmap.mmap(self._fd, _FILE_BYTES)
        _, boot, *header = _HEADER.unpack_from(mapped)
        if boot != boot_id().encode():
            mapped[_SLOTS_AT:] = bytes(_FILE_BYTES - _SLOTS_AT)
            fresh = Header(0.0, 0.0, Header(*header).entries)
            _HEADER.pack_into(mapped, 0, _MAGIC, boot_id().encode(), *fresh)
        return mapped

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Whether the lock was to be had; it is held until the end."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    @property
    def timetable(self) -> Timetable:
        """The group's rate; as it was if somebody is just changing it."""
        with self._locked() as locked:
            if not locked:
                return self._timetable
            if self._wanted is not None:
                self._write(self._wanted)
                self._wanted = None
            entries = self._map[_HEADER.size :][: self._header().entries * _ENTRY.size]
        if entries != self._entries:
            found = _ENTRY.iter_unpack(entries)
            self._timetable = Timetable(*((at, None if rate < 0 else rate) for at, rate in found))
            self._entries = entries
        return self._timetable

    def set_timetable(self, timetable: Timetable) -> None:
        """Another rate for the whole group, as soon as `timetable` gets the lock."""
        self._wanted = timetable

    def delay_s(self, now_s: float, rate_bits_per_s: float) -> float:
        """Seconds until it is worth asking again; 0.0: this member may send."""
        with self._locked() as locked:
            if not locked:
                return LOOK_AGAIN_S
            self._pay(now_s, rate_bits_per_s)
            mine, others = self._slots(now_s)
            most = max((one.given_bytes for one in others), default=0)
            credit = int(rate_bits_per_s / 8 * CREDIT_S) + QUANTUM_BYTES
            given = max(mine.given_bytes, most - credit)
            self._set_mine(Slot(self._who, now_s, now_s, given))
            delay_s = self._header().free_s - now_s
        if delay_s > 0:
            return min(delay_s, STALE_S / 3)
        waiting = (one for one in others if now_s - one.waits_s < STALE_S)
        turn = all(given <= one.given_bytes + QUANTUM_BYTES for one in waiting)
        return 0.0 if turn else LOOK_AGAIN_S

    def take(self, length: int, now_s: float, rate_bits_per_s: float) -> None:
        """Note that `length` bytes are sent now."""
        self._owed_bytes += length
        with self._locked() as locked:
            if locked:
                self._pay(now_s, rate_bits_per_s)

    def members(self, now_s: float) -> int:
        """How many have lately sent or waited, this one included."""
        return 1 + sum(now_s - one.seen_s < MEMBER_S for one in self._all_but_mine())

    # Below this line the lock is held (but for `members`, which may see a slot half changed).

    def _write(self, timetable: Timetable) -> None:
        """Note the group's rate."""
        for index, (minute, rate) in enumerate(timetable.entries):
            at = _HEADER.size + index * _ENTRY.size
            _ENTRY.pack_into(self._map, at, minute, -1.0 if rate is None else rate)
        self._set_header(self._header()._replace(entries=len(timetable.entries)))

    def _pay(self, now_s: float, rate_bits_per_s: float) -> None:
        """Note what was sent since the last time; what all owe is paid for at this rate."""
        header = self._header()
        was, free_s, _ = header
        rate_bits_per_s = min(rate_bits_per_s, _MOST_RATE)
        if was and free_s > now_s and abs(was / rate_bits_per_s - 1) > _SAME_RATE:
            free_s = now_s + (free_s - now_s) * was / rate_bits_per_s
            self._set_header(header._replace(rate_bits_per_s=rate_bits_per_s, free_s=free_s))
        if self._owed_bytes == 0:
            return
        mine, _ = self._slots(now_s)
        free_s = max(free_s, now_s - BURST_S) + self._owed_bytes * 8 / rate_bits_per_s
        self._set_header(header._replace(rate_bits_per_s=rate_bits_per_s, free_s=free_s))
        given = mine.given_bytes + self._owed_bytes
        self._set_mine(Slot(self._who, float("-inf"), now_s, given))
        self._owed_bytes = 0

    def _slots(self, now_s: float) -> tuple[Slot, list[Slot]]:
        """This member's slot, and those of the others that count now."""
        others = [one for one in self._all_but_mine() if now_s - one.seen_s < STALE_S]
        mine = Slot(*_SLOT.unpack_from(self._map, self._at))
        return (mine if mine.who == self._who else Slot()), others

    def _all_but_mine(self) -> list[Slot]:
        slots = map(Slot._make, _SLOT.iter_unpack(self._map[_SLOTS_AT:]))
        return [one for one in slots if one.who not in (0, self._who)]

    def _set_mine(self, slot: Slot) -> None:
        if self._at == 0 or _SLOT.unpack_from(self._map, self._at)[0] != self._who:
            slots = [Slot(*one) for one in _SLOT.iter_unpack(self._map[_SLOTS_AT:])]
            free = min(range(MOST_MEMBERS), key=lambda at: slots[at].who and slots[at].seen_s)
            self._at = _SLOTS_AT + free * _SLOT.size
        _SLOT.pack_into(self._map, self._at, *slot)

    def _header(self) -> Header:
        return Header(*_HEADER.unpack_from(self._map)[2:])

    def _set_header(self, header: Header) -> None:
        magic, boot = _HEADER.unpack_from(self._map)[:2]
        _HEADER.pack_into(self._map, 0, magic, boot, *header)
