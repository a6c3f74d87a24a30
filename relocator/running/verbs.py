"""The verbs of the control socket and of other sites: which there are, and what each does.

Whether a verb is legal in a state is told by the table in states.py. Every verb of the control
socket answers with the status after it.
"""

import re
import threading
import time
from collections.abc import Callable
from typing import Any

from relocator import config
from relocator.copying import deadline, ordering
from relocator.copying.recent import FIRST_PLACES
from relocator.errors import ConfigError, StateError
from relocator.running import exports, rest, states
from relocator.running.control import asker_has_gone
from relocator.running.disk import Disk
from relocator.running.handover import Handover
from relocator.running.lifecycle import OUTDATED
from relocator.running.parts import Parts, Transfer
from relocator.running.rounds import Rounds
from relocator.running.status import MAP_CELLS, Status
from relocator.source import digests
from relocator.source.digests import DigestsExport
from relocator.source.replies import Reply
from relocator.source.verify import DigestExport
from relocator.store import runs, skipped

_MOST_WAIT_S = 3600.0
#: verb -> what another site may ask it with: the seal's name and how much may come with it, the
#: epoch that is known
_ARGUMENTS = {
    "epoch": re.compile("|[0-9]{1,18}"),
    "seal": re.compile("|[0-9a-f]{32}(/[0-9]{1,9}(/[0-9]{1,2}/[1-9][0-9]?)?)?"),
    "moved": re.compile("|[0-9a-f]{32}"),
    "withdrawn": re.compile("[0-9a-f]{32}"),
}
_NONE = re.compile("")


class Verbs:
    """What may be asked of one disk."""

    def __init__(self, parts: Parts, disk: Disk, handover: Handover, status: Status) -> None:
        self._parts = parts
        self._disk = disk
        self._handover = handover
        self._status = status
        self._choosing = threading.Lock()
        self._chosen: tuple[str, rest.Rest] | None = None  # for which seal and size
        #: verb -> what it does; what it returns is added to the status
        self._actions: dict[str, Callable[[], dict[str, Any] | None]] = {
            "pause": lambda: self._transfer.pacer.set_paused(True),
            "resume": lambda: self._transfer.pacer.set_paused(False),
            "measure": handover.measure,
            "reserve": parts.lifecycle.reserve,
            "refresh": self._refresh,
            "release": handover.activation.release,
            "withdraw": handover.activation.withdraw,
            "identify": handover.identify,
            "epoch": lambda: handover.epoch()[0],
            "seal": handover.seal,
            "moved": lambda: handover.moved(None),
            "verify": handover.verify,
        }
        self._settings: dict[str, Callable[[str, str], Callable[[], None]]] = {
            "rate": self._set_rate,
            "finish-by": self._set_finish_by,
            "window": self._set_window,
            "background": self._set_background,
            "order": self._set_order,
            "refresh": self._set_refresh,
        }

    def call(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out a verb from the control socket.

        Raises:
            StateError: not legal in this state.
            ConfigError: an argument is unknown or wrong.
        """
        by_word = verb == "unseal" and arguments.get("withdrawn") is not None
        states.check(self._parts.lifecycle.state, "withdrawn" if by_word else verb)
        known = {
            "wait": {"timeout_s"},
            "map": {"cells"},
            "set": set(self._settings),
            "activate": {"hold", "wait", "seal"},
            "flush": {"last"},
            "unseal": {"force", "withdrawn"},
        }
        with_status = _switches(verb, {"status": arguments.pop("status", True)})["status"]
        _refuse_unknown(verb, arguments, known.get(verb, set()))
        extra: dict[str, Any] | None = None
        if verb == "wait":
            self._wait(arguments)
        elif verb == "map":
            extra = {"map": self._status.map(arguments.get("cells", MAP_CELLS))}
        elif verb == "set":
            self._set(arguments)
        elif verb == "activate":
            already = self._handover.activation.activate(**_switches(verb, arguments))
            extra = {"already_active": already}
        elif verb == "unseal":
            extra = self._unseal(**arguments)
        elif verb == "flush":
            self._flush(**_switches(verb, arguments))
        elif verb in self._actions:
            extra = self._actions[verb]()
        elif verb != "status":
            raise StateError(f"'{verb}' is for another site's relocator only")
        return {**(self._status.now() if with_status else {}), **(extra or {})}

    def _flush(self, *, last: bool = False) -> None:
        self._disk.flush()
        if last:
            self._parts.lifecycle.stand_still()

    def remote(self, verb: str, argument: str) -> Reply:
        """Carry out a verb from another site; returns its answer with the maps that it needs.

        Raises:
            StateError: not legal in this state.
        """
        states.check(self._parts.lifecycle.state, verb)
        if verb == "epoch" and argument:
            fields, ended = self._handover.epoch(int(argument))
            return Reply(fields, {"ended": ended})
        if verb == "epoch":
            fields, ended = self._handover.epoch()
            return Reply(fields, {"ended": ended, "diverged": self._diverged()})
        if verb == "seal":
            return self._seal(argument)
        if verb == "withdrawn":
            fields = self._handover.withdrawn(argument)
        elif verb == "moved":
            fields = self._handover.moved(argument or None)
        else:
            fields = self._actions[verb]() or {}
        return Reply(fields, self._maps() if verb == "identify" else {})

    def _maps(self) -> dict[str, bytes]:
        return {"dirty": runs.pack(self._parts.store.dirty), "diverged": self._diverged()}

    def _diverged(self) -> bytes:
        """What may have been written since the disk came here (packed)."""
        store = self._parts.store
        return self._handover.all_blocks() if store.meta.unrecorded else runs.pack(store.diverged)

    def _seal(self, argument: str) -> Reply:
        """Seal; `TOKEN/BYTES`: and let what was written last come with the answer, or in parts."""
        token, wanted, *_ = (*argument.split("/"), "")
        fields = self._handover.seal(token or None, asked=True)
        part, parts = rest.part_of(argument)
        if part:
            chosen = self._choose(argument)
            return Reply({**fields, "rest_of": chosen.name}, {}, chosen.part(part, parts))
        maps = self._maps()
        maps.update(self._handover.ended())
        maps["recent"] = self._parts.recent.places(FIRST_PLACES)
        if not wanted:
            return Reply(fields, maps)
        chosen = self._choose(argument)
        maps["rest_blocks"] = chosen.packed
        return Reply({**fields, "rest_of": chosen.name}, maps, chosen.part(0, parts))

    def _choose(self, argument: str) -> rest.Rest:
        """What comes with that seal: the same for all its parts, though heat changes meanwhile."""
        name = "/".join(argument.split("/")[:2])
        with self._choosing:
            if self._chosen is None or self._chosen[0] != name:
                store, heat = self._parts.store, self._parts.heat
                chosen = rest.select(store, heat, self._holds, rest.most_of(argument))
                self._chosen = name, chosen
            return self._chosen[1]

    def open_export(
        self, name: str, refusal: str | None = None
    ) -> Disk | exports.Snapshot | DigestExport | DigestsExport:
        """What a client that asks for export `name` gets; `refusal`: why not what it asks for.

        Raises:
            ConfigError: there is no such export.
            StateError: it is refused, and nothing can be said in it.
        """
        store = self._parts.store
        if refusal is not None:
            if name.startswith("control/"):
                return exports.refusal_export(refusal)
            raise StateError(f"export '{name}' is refused: {refusal}")
        if name == "":
            return self._disk
        if name == "recent":
            return exports.content_export(self._parts.recent.places())
        if name in ("heat", "write-heat"):
            return exports.content_export(self._parts.heat.pack(writes=name != "heat"))
        if name in ("dirty", "diverged"):
            bitmap = getattr(store, name)
            return exports.content_export(bitmap.extract(0, bitmap.bits))
        if name == skipped.NAME:
            return exports.content_export(skipped.packed(store))
        if name == "digest":
            return DigestExport(store)
        if name == "control":
            return exports.status_export(self._status.now)
        if (unit_bytes := digests.unit_of(name)) is not None:
            return DigestsExport(store.image, store.geometry, unit_bytes, self._holds)
        verb, _, argument = name.removeprefix("control/").partition("/")
        if name.startswith("control/") and argument_fits(verb, argument):
            rest_bytes = rest.most_of(argument) if verb == "seal" else 0
            return exports.verb_export(store, lambda: self.remote(verb, argument), rest_bytes)
        raise ConfigError(f"export '{name}': unknown; there are: {', '.join(exports.NAMES)}")

    def _holds(self, first: int, end: int) -> bool:
        """Whether the disk's blocks `first..end` are in the image."""
        lifecycle, present = self._parts.lifecycle, self._parts.store.present
        return lifecycle.all_here or (not lifecycle.pass_through and present.all(first, end))

    def _unseal(self, force: Any = False, withdrawn: Any = None) -> dict[str, Any]:
        """Undo the seal.

        `withdrawn`: that of this name, by the word of the proxy that has given it back; asked for
        later, it is refused.
        """
        if withdrawn is None:
            return self._handover.unseal(**_switches("unseal", {"force": force}))
        if force or not isinstance(withdrawn, str) or not argument_fits("withdrawn", withdrawn):
            raise ConfigError(f"withdrawn={withdrawn}: must be a seal's name, and without force")
        return self._handover.withdrawn(withdrawn)

    def _wait(self, arguments: dict[str, Any]) -> None:
        timeout_s = config.parse_seconds("timeout_s", str(arguments.get("timeout_s", _MOST_WAIT_S)))
        give_up_s = time.monotonic() + timeout_s
        lifecycle = self._parts.lifecycle
        while lifecycle.outdated or not lifecycle.finished.wait(
            min(1.0, max(0.0, give_up_s - time.monotonic()))
        ):
            if lifecycle.outdated:
                raise StateError(OUTDATED)
            if lifecycle.stopping.is_set():
                raise StateError("the proxy is being stopped; the relocation is not complete")
            if asker_has_gone():
                raise StateError("nobody waits any more")
            if time.monotonic() >= give_up_s:
                raise StateError(f"'wait' gave up after {timeout_s:g} s: not complete yet")

    def _set(self, arguments: dict[str, Any]) -> None:
        if not arguments:
            raise ConfigError(f"'set' needs at least one of: {', '.join(self._settings)}")
        # All values are read before any takes effect: a refusal changes nothing.
        steps = [self._settings[key](key, str(text)) for key, text in arguments.items()]
        for step in steps:
            step()

    @property
    def _transfer(self) -> Transfer:
        if self._parts.transfer is None:
            raise StateError(f"nothing is being copied in state '{self._parts.lifecycle.state}'")
        return self._parts.transfer

    def _refresh(self) -> dict[str, int]:
        return self._rounds.refresh()

    @property
    def _rounds(self) -> Rounds:
        if (rounds := self._handover.activation.rounds) is None:
            raise StateError("'refresh' needs a source that is a relocator, or source-bitmap=")
        return rounds

    def _set_rate(self, key: str, text: str) -> Callable[[], None]:
        value, pacer = config.parse_timetable(key, text), self._transfer.pacer
        return lambda: pacer.set_rate(value)

    def _set_finish_by(self, key: str, text: str) -> Callable[[], None]:
        value, pacer = deadline.parse_moment(key, text), self._transfer.pacer
        return lambda: pacer.set_finish_by(value)

    def _set_window(self, key: str, text: str) -> Callable[[], None]:
        value, pacer = config.parse_window(key, text), self._transfer.pacer
        return lambda: pacer.set_window(value)

    def _set_background(self, key: str, text: str) -> Callable[[], None]:
        value, pacer = config.parse_switch(key, text), self._transfer.pacer
        return lambda: self._handover.activation.set_background(pacer, value)

    def _set_refresh(self, key: str, text: str) -> Callable[[], None]:
        value, rounds = config.parse_refresh(key, text), self._rounds
        return lambda: setattr(rounds, "refresh_s", value)

    def _set_order(self, key: str, text: str) -> Callable[[], None]:
        keys = config.parse_order(key, text)
        trace = ordering.load_trace(keys, self._parts.store.geometry.block_bytes)
        return lambda: self._parts.plan.set_keys(keys, trace)


def argument_fits(verb: str, argument: str) -> bool:
    """Whether there is the export `control/VERB[/ARGUMENT]`."""
    return verb in exports.VERBS and bool(_ARGUMENTS.get(verb, _NONE).fullmatch(argument))


def _switches(verb: str, arguments: dict[str, Any]) -> dict[str, bool]:
    """Arguments that are true or false."""
    for key, value in arguments.items():
        if not isinstance(value, bool):
            raise ConfigError(f"{key}={value}: of '{verb}' must be true or false")
    return arguments


def _refuse_unknown(verb: str, arguments: dict[str, Any], known: set[str]) -> None:
    """Refuse arguments that the verb doesn't have."""
    for key in arguments:
        if key not in known:
            allowed = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"{key}: '{verb}' has no such argument; it takes: {allowed}")
