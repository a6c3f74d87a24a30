"""A running disk: its parts put together, and its life from opening to closing.

Opening (`open_engine`) checks everything and takes the store's lock, so that errors are shown while
nbdkit still has a terminal; `start` begins to connect and to copy, after nbdkit has forked. What
moves authority over the disk from site to site is in handover.py.
"""

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from relocator import config
from relocator.config import Config
from relocator.copying import ordering
from relocator.copying.copier import Copier
from relocator.copying.heat import Heat
from relocator.copying.hydration import Hydration
from relocator.copying.pacing import TokenBucket, Window
from relocator.copying.readahead import Readahead
from relocator.errors import ConfigError, RelocatorError, StateError
from relocator.running import exports, states
from relocator.running.disk import Disk
from relocator.running.gate import Gate
from relocator.running.handover import Handover, copy_of, initial_state
from relocator.running.states import Role, State
from relocator.running.status import MAP_CELLS, RateMeter, map_of, status_of
from relocator.source.identity import Guard
from relocator.source.upstream import Upstream
from relocator.source.verify import DigestExport
from relocator.store import runs
from relocator.store.opening import open_target
from relocator.store.store import Store

COMMIT_EVERY_S = 5
_MOST_WAIT_S = 3600.0
_REFUSALS = {
    State.STANDBY: "standby: the disk is still active at its source; activate first",
    State.SEALED: "sealed: the disk has moved to another site",
    State.RELAYING: "sealed: the disk has moved to another site",
}


class Engine:
    """Serves one disk and, while it has an upstream, brings the rest of it here."""

    def __init__(self, settings: Config, store: Store) -> None:
        self.settings = settings
        self.store = store
        self.state = initial_state(store.meta)
        self.failure: str | None = None
        self.notes: tuple[str, ...] = ()
        self.meter = RateMeter(time.monotonic)
        self.heat = Heat(store.geometry.size_bytes, time.monotonic)
        self.gate = Gate(_REFUSALS.get(self.state))
        self.upstream: Upstream | None = None
        self.hydration: Hydration | None = None
        self.copier: Copier | None = None
        self.knowledge = ordering.Knowledge(
            store.geometry.total_blocks,
            store.geometry.block_bytes,
            heat_shift=self.heat.shift,
            trace=config.load_trace(settings.order, store.geometry.block_bytes),
        )
        self._order = settings.order
        self._finished = threading.Event()
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        if self.state in states.UNFINISHED:
            self._assemble()
        else:
            self._finished.set()
        self.disk = Disk(
            store,
            gate=self.gate,
            heat=self.heat,
            upstream=self.upstream,
            hydration=self.hydration,
        )
        self.handover = Handover(self)
        self._prepare_disk()

    def _assemble(self) -> None:
        settings = self.settings
        if (endpoint := settings.endpoint) is None:
            raise ConfigError(
                f"source is missing: the store {settings.store} is not complete; "
                f"it was made from {self.store.meta.source}"
            )
        guard = Guard(self.store, endpoint)
        self.upstream = Upstream(
            endpoint, settings.retry_timeout_s, settings.connections, guard, shared=settings.shared
        )
        self.hydration = Hydration(self.store, self.upstream, self._all_present)
        self.copier = Copier(
            self.store,
            upstream=self.upstream,
            hydration=self.hydration,
            window=Window(settings.window_bytes),
            bucket=TokenBucket(settings.rate_bits_per_s),
            plan=self._plan,
            finish=self._finish,
        )
        self.hydration.on_demand = self.copier.demand

    def _prepare_disk(self) -> None:
        if self.state is State.STANDBY:
            self.disk.pass_through = True
            if self.settings.activate_on_write:
                self.disk.on_refusal = self.handover.activate_by_write
        if self.copier is not None:
            self._readahead = Readahead(
                self.store.geometry.total_blocks,
                self.store.geometry.block_bytes,
                self.settings.readahead_bytes,
            )
            self.disk.on_miss = self._missed

    @property
    def order(self) -> tuple[str, ...]:
        """The sort keys of the background copy."""
        return self._order

    @property
    def role(self) -> Role:
        """A disk that has an upstream is a proxy; once complete it is a target."""
        return Role.PROXY if self.state in states.UNFINISHED else Role.TARGET

    def start(self) -> None:
        """Connect to the source and begin to copy."""
        self._keeper.start()
        if self.upstream is None or self.copier is None:
            return
        self.upstream.start()
        preseeds = self.state is not State.STANDBY or self.handover.source_is_ours
        self.copier.start(enabled=self.settings.background and preseeds)
        self.handover.begin()
        if self.store.present_blocks == self.store.geometry.total_blocks:
            self._all_present()

    def stop(self) -> None:
        """Stop copying, disconnect, commit, and let go of the store."""
        self._stopping.set()
        if self.copier is not None:
            self.copier.stop()
        if self.upstream is not None:
            self.upstream.close()
        if self.copier is not None:
            self.copier.join()
        if self._keeper.is_alive():
            self._keeper.join()
        self.store.close()

    def status(self) -> dict[str, Any]:
        """See docs/status.md."""
        return status_of(self)

    def call(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Carry out a verb from the control socket.

        Raises:
            StateError: not legal in this state.
            ConfigError: an argument is unknown or wrong.
        """
        states.check(self.state, verb)
        known = {"wait": {"timeout_s"}, "map": {"cells"}, "set": set(_SETTINGS)}.get(verb, set())
        refuse_unknown(verb, arguments, known)
        if verb == "wait":
            self._wait(arguments)
        elif verb == "map":
            return {**self.status(), "map": map_of(self, arguments.get("cells", MAP_CELLS))}
        elif verb == "set":
            self._set(arguments)
        elif verb in ("pause", "resume"):
            self._active_copier().set_paused(verb == "pause")
        elif verb != "status":
            extra = _ACTIONS[verb](self)
            return {**self.status(), **(extra or {})}
        return self.status()

    def open_export(self, name: str) -> Disk | exports.Snapshot | DigestExport:
        """What a client that asks for export `name` gets.

        Raises:
            ConfigError: there is no such export.
        """
        if name == "":
            return self.disk
        if name == "heat":
            return exports.content_export(self.heat.pack())
        if name in ("dirty", "diverged"):
            bitmap = getattr(self.store, name)
            return exports.content_export(bitmap.extract(0, bitmap.bits))
        if name == "digest":
            return DigestExport(self.store)
        if name == "control":
            return exports.status_export(self.status)
        verb = name.removeprefix("control/")
        if name.startswith("control/") and verb in exports.VERBS:
            return exports.verb_export(self.store, self._remote, verb)
        raise ConfigError(f"export '{name}': unknown; there are: {', '.join(exports.NAMES)}")

    def _remote(self, verb: str) -> exports.Reply:
        """A verb from another site, with the maps that it needs."""
        states.check(self.state, verb)
        fields = _ACTIONS[verb](self) or {}
        if verb == "moved":
            return fields, {}
        return fields, {
            "dirty": runs.pack(self.store.dirty),
            "diverged": runs.pack(self.store.diverged),
        }

    def replan(self, **known: Any) -> None:
        """Something new is known that the order may rest on."""
        self.knowledge = ordering.Knowledge(**{**vars(self.knowledge), **known})
        if self.copier is not None:
            self.copier.restart()

    def set_order(self, order: tuple[str, ...]) -> None:
        """Change the order of the background copy."""
        trace = config.load_trace(order, self.store.geometry.block_bytes)
        self._order = order
        self.replan(trace=trace)

    def _plan(self) -> Iterator[tuple[int, int]]:
        return ordering.build(self._order, self.knowledge)

    def _missed(self, first: int, end: int) -> None:
        """A guest read waits for the source: pull its group forward, and read ahead."""
        if self.copier is None:
            return
        if self.settings.pull_forward:
            unit = ordering.unit_blocks(self.knowledge)
            start = first // unit * unit
            self.copier.pull(start, min(start + unit, self.store.geometry.total_blocks))
        idle = self.copier.window.in_flight_bytes == 0
        ahead = self._readahead.missed(first, end, link_idle=idle)
        if ahead is not None:
            self.copier.prefetch(*ahead)

    def _wait(self, arguments: dict[str, Any]) -> None:
        timeout_s = config.parse_seconds("timeout_s", str(arguments.get("timeout_s", _MOST_WAIT_S)))
        give_up_s = time.monotonic() + timeout_s
        while not self._finished.wait(min(1.0, max(0.0, give_up_s - time.monotonic()))):
            if self._stopping.is_set():
                raise StateError("the proxy is being stopped; the relocation is not complete")
            if time.monotonic() >= give_up_s:
                raise StateError(f"'wait' gave up after {timeout_s:g} s: not complete yet")

    def _set(self, arguments: dict[str, Any]) -> None:
        if not arguments:
            raise ConfigError(f"'set' needs at least one of: {', '.join(_SETTINGS)}")
        copier = self._active_copier()
        # All values are read before any takes effect: a refusal changes nothing.
        steps = [_SETTINGS[key](key, str(text), self, copier) for key, text in arguments.items()]
        for step in steps:
            step()

    def _active_copier(self) -> Copier:
        if self.copier is None:
            raise StateError(f"nothing is being copied in state '{self.state}'")
        return self.copier

    def _all_present(self) -> None:
        if self.copier is not None and self.state is not State.STANDBY:
            self.copier.all_present()

    def check_complete(self) -> None:
        """Complete if nothing is absent (a pre-seeded disk may be, as soon as it is active)."""
        if self.store.present_blocks == self.store.geometry.total_blocks:
            self._all_present()

    def unfinished_after(self, delay_s: float) -> bool:
        """Wait so long; whether there is then still something to fetch, and nobody stops us."""
        return not self._stopping.wait(delay_s) and self.state in states.UNFINISHED

    def _finish(self) -> bool:
        """Make it durable that every block is here, then drop the upstream (copier's thread).

        Returns False if that failed for now: the source is kept, and it is tried again.
        """
        try:
            self.store.update(complete=True)
        except (OSError, RelocatorError) as error:
            self.failure = f"the last commit failed: {error}"
            return False
        self.failure = None
        self.disk.all_here = True
        self.state = states.after(self.state, "last-block-arrived")
        if self.upstream is not None:
            self.upstream.close()
        self._finished.set()
        return True

    def _keep(self) -> None:
        """Once a second: let the heat decay; every few seconds: commit."""
        seconds = 0
        while not self._stopping.wait(1.0):
            self.heat.tick()
            seconds += 1
            if seconds % COMMIT_EVERY_S == 0 and self.store.owes_commit:
                try:
                    self.store.commit()
                    self.failure = None
                except RelocatorError as error:
                    self.failure = str(error)


#: verbs that act on the disk; what they return is added to the status
_ACTIONS: dict[str, Callable[[Engine], dict[str, Any] | None]] = {
    "flush": lambda engine: engine.disk.flush(),
    "activate": lambda engine: engine.handover.activate(),
    "identify": lambda engine: engine.handover.identify(),
    "epoch": lambda engine: engine.handover.epoch(),
    "seal": lambda engine: engine.handover.seal(),
    "unseal": lambda engine: engine.handover.unseal(),
    "moved": lambda engine: engine.handover.moved(),
    "verify": lambda engine: engine.handover.verify(),
}


def refuse_unknown(verb: str, arguments: dict[str, Any], known: set[str]) -> None:
    """Refuse arguments that the verb doesn't have."""
    for key in arguments:
        if key not in known:
            allowed = ", ".join(sorted(known)) or "none"
            raise ConfigError(f"{key}: '{verb}' has no such argument; it takes: {allowed}")


Setting = Callable[[str, str, Engine, Copier], Callable[[], None]]


def _set_rate(key: str, text: str, _engine: Engine, copier: Copier) -> Callable[[], None]:
    value = config.parse_rate(key, text)
    return lambda: copier.set_rate(value)


def _set_window(key: str, text: str, _engine: Engine, copier: Copier) -> Callable[[], None]:
    value = config.parse_window(key, text)
    return lambda: copier.set_window(value)


def _set_background(key: str, text: str, _engine: Engine, copier: Copier) -> Callable[[], None]:
    value = config.parse_switch(key, text)
    return lambda: copier.set_enabled(value)


def _set_order(key: str, text: str, engine: Engine, _copier: Copier) -> Callable[[], None]:
    value = config.parse_order(key, text)
    return lambda: engine.set_order(value)


_SETTINGS: dict[str, Setting] = {
    "rate": _set_rate,
    "window": _set_window,
    "background": _set_background,
    "order": _set_order,
}


def open_engine(settings: Config) -> Engine:
    """Open the disk and everything it needs, without starting anything.

    Raises:
        ConfigError: the disk, store or source doesn't fit.
    """
    if settings.source is None and settings.disk is not None:
        block_bytes = settings.block_bytes or config.DEFAULT_BLOCK_BYTES
        return Engine(settings, open_target(settings.disk, settings.store, block_bytes))
    return Engine(settings, copy_of(settings))
