"""Defects to plant in the real code, each with a world in which it must be found."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

from relocator.copying.hydration import Hydration
from relocator.errors import UpstreamError
from relocator.running.disk import Disk
from relocator.running.gate import Gate
from relocator.running.lifecycle import Lifecycle
from relocator.source import remote
from relocator.source.answer import Answer
from relocator.source.remote import Source
from relocator.store.meta import new_token
from relocator.store.store import Store
from tests.explore.plan import Plan
from tests.explore.worlds import NO_COPY, TO_P, TWO


class Planted(NamedTuple):
    """`what` is wrong when `owner.name` is `instead`; `says` is in what the explorer says of it.

    `undefended`: methods of `owner` that would make up for it do nothing.
    """

    what: str
    owner: type
    name: str
    instead: Any
    plan: Plan
    says: str
    undefended: tuple[str, ...] = ()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The code with the defect."""
        planted = {self.name: self.instead, **dict.fromkeys(self.undefended, _nothing)}
        before = {name: getattr(self.owner, name) for name in planted}
        for name, instead in planted.items():
            setattr(self.owner, name, instead)
        try:
            yield
        finally:
            for name, method in before.items():
                setattr(self.owner, name, method)


def _plan(name: str, verbs: dict[str, tuple[str, ...]], **budget: int) -> Plan:
    return Plan(name, TO_P, verbs, budget, without=NO_COPY)


_replace_meta = Store._replace_meta


def _seal_is_not_written(self: Store, **changes: Any) -> None:
    if changes.get("seal") is None:
        _replace_meta(self, **changes)
    else:
        with self.lock:
            self.meta = replace(self.meta, **changes)


def _nobody_is_asked(self: Lifecycle, **_: Any) -> dict[str, bool]:
    with self._lock:
        self._change_locked("unseal", seal=None, asked=False, moved=False)
    return {}


def _whoever_asks(self: Lifecycle, token: str | None = None, *, asked: bool = False) -> None:
    with self._lock:
        if self._store.meta.seal is None:
            self._change_locked("seal", seal=token or new_token(), asked=asked, moved=False)


def _at_the_first_failure(self: Source) -> Answer | None:
    try:
        return self.call("identify")
    except UpstreamError:
        with remote.connected(self.endpoint):
            return None


def _any_generation(self: Lifecycle, *_: Any) -> None:
    with self._lock:
        if self._store.meta.seal is not None:
            self._store.update(moved=True)
            self._set_gate_locked(self.state)


def _dirty_first(self: Store, first: int, end: int) -> None:
    if not self.dirty.all(first, end):
        self.dirty_blocks += self.dirty.set(first, end)
        self.diverged.set(first, end)
        for plane in (0, 1, 2):
            self._owe_locked(plane, first, end)


def _nothing(*_: Any, **__: Any) -> None:
    """Leaves out what should be done."""


PLANTED = [
    Planted(
        "a seal is answered before it is durable",
        *(Store, "_replace_meta", _seal_is_not_written),
        _plan("", {"p": ("activate",)}, verb=1),
        "answers what its file doesn't say",
    ),
    Planted(
        "unseal is obeyed while a proxy is active",
        *(Lifecycle, "unseal", _nobody_is_asked),
        _plan("", {"p": ("activate",), "s": ("unseal",)}, verb=2),
        "both acknowledge writes",
    ),
    Planted(
        "a second proxy is given the first one's seal",
        *(Lifecycle, "seal", _whoever_asks),
        Plan(
            *("", TWO, {"p": ("activate",), "q": ("activate",)}, {"verb": 2}),
            without=NO_COPY,
        ),
        "both acknowledge writes",
    ),
    Planted(
        "a second proxy that is started active is given the first one's seal",
        *(Lifecycle, "seal", _whoever_asks),
        Plan("", TWO, {"p": ("activate",)}, {"verb": 1}, active=frozenset("q"), without=NO_COPY),
        "both acknowledge writes",
    ),
    Planted(
        "a source that was away for a moment is taken for another kind of server",
        *(Source, "identify", _at_the_first_failure),
        Plan("", TWO, {}, {"kill": 1}, active=frozenset("q"), crashers=("s",), without=NO_COPY),
        "both acknowledge writes",
    ),
    Planted(
        "a repeated 'moved' is obeyed by the next seal",
        *(Lifecycle, "note_moved", _any_generation),
        _plan("", {"p": ("activate", "withdraw")}, verb=3, cut=1),
        "although nobody went on from that seal",
    ),
    Planted(
        "a write with FUA is answered before it is durable",
        *(Disk, "flush", _nothing),
        _plan("", {"p": ("activate",)}, verb=1, write=1, power=1),
        "reads as",
    ),
    Planted(
        "a disk that was written is given back",
        *(Lifecycle, "_check_unwritten_locked", _nothing),
        _plan("", {"p": ("activate", "withdraw")}, verb=2, write=1),
        "reads as",
    ),
    Planted(
        "what was copied ahead and written since is kept",
        *(Store, "drop", lambda *_: 0),
        Plan("", TO_P, {"p": ("activate",)}, {"verb": 1, "write": 1}, ahead=(0,)),
        "reads as",
    ),
    Planted(
        "what the source was asked before its seal is believed",
        *(Hydration, "disown_fetches", _nothing),
        Plan("", TO_P, {"p": ("activate",)}, {"verb": 1, "write": 1, "copy": 1}),
        "reads as",
    ),
    Planted(
        "a seal doesn't wait for writes in progress",
        *(Gate, "_drain_locked", _nothing),
        Plan(
            *("", TO_P, {"p": ("activate",)}, {"verb": 1, "write": 1}),
            without=NO_COPY,
            slow_writes=True,
        ),
        "acknowledged a write",
    ),
    Planted(
        "a block is dirty before it has diverged",
        *(Store, "mark_dirty", _dirty_first),
        Plan(
            *("", TO_P, {"p": ("withdraw",)}, {"verb": 1, "write": 2, "kill": 1}),
            active=frozenset("p"),
            writers=("p",),
            written=1,
            crashers=("p",),
            without=NO_COPY,
        ),
        "reads as",
        undefended=("_diverge_what_is_dirty",),
    ),
]
