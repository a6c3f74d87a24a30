"""One world: its sites, its network, its guests and operators; what may happen next, and doing it.

An action is a tuple of strings and numbers, the same in every run that did the same before. `run`
lets a thread go on, `deliver` and `late` hand a message to its server, `write`, `copy`, `verb` and
`start` begin something, the others are faults. Faults, writes and verbs have a budget, and nothing
else has: what a world can do is finite.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from relocator.config import Config
from relocator.errors import RelocatorError
from relocator.running.states import State
from tests.explore.ledger import Ledger
from tests.explore.network import Network
from tests.explore.patches import begin
from tests.explore.plan import VERBS, Action, Plan
from tests.explore.site import BLOCK_BYTES, Site
from tests.explore.storage import Moments, Storage
from tests.explore.threads import Kernel, Task

FIRST = (0x11, 0x12)  # what the disk's blocks hold at the beginning
_LONG_S = 3600.0


class World:
    """A world in one state; `perform` leads to another. Call `close` at its end."""

    def __init__(self, plan: Plan, root: Path, template: "World | None" = None) -> None:
        self.plan = plan
        self._template = template
        self.kernel, self.network, self.moments = Kernel(), Network(), Moments()
        begin(self.kernel, self.network, self.moments)
        self.kernel.names = 0 if template is None else template.kernel.names
        self.moments.on_sync = lambda: self._on_moment("sync")
        self.moments.on_store = lambda: self._on_moment("store")
        self.left = dict(plan.budget)
        self.kernel.without = plan.without
        self.ledger = Ledger(FIRST)
        self.sites: dict[str, Site] = {}
        self.guest = "s"
        self.answered: list[str] = []  # what the verbs of the last step came to
        self.broken: list[str] = []
        self.forced = False
        self.took_over: set[str] = set()
        self.gone_on_from: set[str] = set()  # seals by which a proxy has become active
        self._writes = 0
        #: of the last step: before each sync and after each store a crash may come
        self.moments_of_step: list[str] = []
        self._crash_at = 0
        self._crashed: Site | None = None
        self._make("s", root)
        for name in plan.proxies:
            self._make(name, root)
        self._begin()

    def _make(self, name: str, root: Path) -> None:
        made = None if self._template is None else self._template.sites[name]
        storage = Storage(root / name, None if made is None else made.storage)
        self.moments.stores.append(storage)
        site = Site(self.kernel, self.network, storage, name)
        common = {"order": ("sequential",), "recent_places": 16, "background": False}
        common |= {"seal_brings_bytes": 0, "block_bytes": BLOCK_BYTES, **self.plan.settings}
        if name == "s":
            disk = storage.root / "disk"
            if made is None:
                storage.add("disk", b"".join(bytes([v]) * BLOCK_BYTES for v in FIRST))
            store = storage.root / "store" if self.plan.kept else None
            site.settings = Config(disk=disk, store=store, **common)
        else:
            source = f"nbd://{self.plan.proxies[name]}"
            store, standby = storage.root / "store", name not in self.plan.active
            site.settings = Config(store=store, source=source, standby=standby, **common)
        site.otherwise = site.settings
        self.sites[name] = site

    def _begin(self) -> None:
        """The source serves, the first proxy stands by; another one is started by its operator."""
        for name in ("s", "p"):
            self.sites[name].start()
            self.settle()
        for block in self.plan.ahead if self._template is None else ():
            self._do_copy("p", block)
            self.settle()
        self.after_step()
        self.left = dict(self.plan.budget)

    # what may happen
    def enabled(self) -> list[Action]:
        """Every action that can be performed now."""
        found: list[Action] = [
            ("run", task.name)
            for task in self.kernel.tasks
            if task.runnable and _thread(task) not in self.plan.eager
        ]
        found += [("deliver", at) for at in range(len(self.network.waiting))]
        found += [("late", at) for at in range(len(self.network.late))]
        for site in self.sites.values():
            found += self._of_site(site)
        if self.left.get("long"):
            found.append(("long",))
        for link in sorted(self.network.cut):
            found.append(("heal", *link))
        if self.left.get("cut"):
            links = {tuple(sorted(pair)) for pair in self.plan.proxies.items()}
            found += [("cut", *link) for link in sorted(links - self.network.cut)]
        return found

    def _of_site(self, site: Site) -> list[Action]:
        found: list[Action] = []
        if site.engine is None:
            if not site.process.alive:
                found.append(("start", site.name))
            if site.name == "s" and self._may_return(site):
                found.append(("return", self.plan.back))
            return found
        busy = {_thread(task) for task in self._tasks(site)}
        if self.left.get("verb") and "verb" not in busy:
            found += [("verb", site.name, verb) for verb in self.plan.verbs.get(site.name, ())]
        if self.left.get("write") and "write" not in busy and self._may_write(site):
            found.append(("write", site.name, self._writes % self.plan.written))
        if self.left.get("copy") and self._may_copy(site):
            absent = [at for at in range(len(FIRST)) if not site.store.present[at]]
            found += [("copy", site.name, at) for at in absent[:1]]
        if site.name in self.plan.crashers:
            found += [(how, site.name) for how in ("kill", "power") if self.left.get(how)]
        return found

    def _tasks(self, site: Site) -> list[Task]:
        return [task for task in self.kernel.tasks if task.process is site.process]

    def _may_write(self, site: Site) -> bool:
        return site.name in self.plan.writers and (self.plan.roams or self.guest == site.name)

    def _may_copy(self, site: Site) -> bool:
        transfer = site.engine._parts.transfer if site.engine else None
        if transfer is None or not transfer.upstream.connected:
            return False
        return not transfer.upstream.flights and not transfer.pacer.paused

    def _may_return(self, site: Site) -> bool:
        if self.plan.back is None or site.settings.source is not None or site.process.alive:
            return False
        return self.plan.kept and site.meta is not None and site.meta.seal is not None

    # doing it
    def perform(self, action: Action) -> None:
        """Do it. With `(..., "crash", HOW, N)` at its end, a crash comes at its Nth moment."""
        self.answered, self.moments_of_step, self._crash_at = [], [], 0
        how = ""
        if len(action) > 3 and action[-3] == "crash":
            how, self._crash_at = action[-2:]
            self._spend(how)
            action = action[:-3]
        getattr(self, f"_do_{action[0]}")(*action[1:])
        if self._crashed is not None:
            site, self._crashed = self._crashed, None
            self._die(site, how)
        self._crash_at = 0
        self._run_eager()

    def _run_eager(self) -> None:
        """What has nothing to decide goes on; looks at who answers are answered: all alike."""
        while True:
            for task in list(self.kernel.tasks):
                if not task.ended and task.runnable and _thread(task) in self.plan.eager:
                    self.kernel.run(task)
            look = next((one for one in self.network.waiting if one.is_look), None)
            if look is None:
                return
            self._serve(look)

    def _on_moment(self, kind: str) -> None:
        self.moments_of_step.append(kind)
        if self._crash_at and len(self.moments_of_step) == self._crash_at:
            task = self.kernel.current
            assert task is not None
            self._crashed = self.sites[task.process.name]
            self.kernel.wait(lambda: False)

    def _spend(self, what: str) -> None:
        self.left[what] = self.left.get(what, 0) - 1

    def _do_run(self, name: str) -> None:
        self.kernel.run(next(task for task in self.kernel.tasks if task.name == name))

    def _do_deliver(self, at: int) -> None:
        self._serve(self.network.waiting[at])

    def _do_late(self, at: int) -> None:
        self._serve(self.network.late.pop(at))

    def _serve(self, handle: Any) -> None:
        self.kernel.run(self.kernel.spawn(handle.incarnation, "serve", handle.serve))

    def _do_verb(self, name: str, label: str) -> None:
        self._spend("verb")
        self._verb(name, label)

    def _verb(self, name: str, label: str) -> None:
        site, (verb, arguments) = self.sites[name], VERBS[label]

        def say() -> None:
            try:
                site.verb(verb, dict(arguments))
            except (RelocatorError, OSError) as error:
                self.answered.append(f"{name} refused '{label}': {error}")
            else:
                self.answered.append(f"{name} did '{label}'")
                self._note(name, label)

        self.kernel.run(self.kernel.spawn(site.process, "verb", say))

    def _note(self, name: str, label: str) -> None:
        """Where the guest runs after a verb that was carried out."""
        if label.startswith(("activate", "unseal")):
            self.guest = name
        elif label == "withdraw":
            self.guest = self.plan.proxies.get(name, "s")
        self.forced = self.forced or "--force" in label

    def _do_write(self, name: str, block: int) -> None:
        self._spend("write")
        site, value = self.sites[name], 0x40 + self._writes
        self._writes += 1
        disk = site.open_export("").disk
        if self.plan.slow_writes:
            site.write_slowly()
        durable = name != "s"
        self.ledger.begin(block, value)

        def write() -> None:
            try:
                disk.write(
                    memoryview(bytes([value]) * BLOCK_BYTES), block * BLOCK_BYTES, fua=durable
                )
            except (RelocatorError, OSError) as error:
                self.answered.append(f"write refused at {name}: {error}")
                self.ledger.refuse(block, value)
                return
            self.answered.append(f"write {value:#x} acknowledged at {name}")
            self.ledger.acknowledge(name, block, value, durable=durable)
            if site.meta is not None and site.meta.seal is not None:
                self.broken.append(f"the sealed {name} acknowledged a write")

        self.kernel.run(self.kernel.spawn(site.process, "write", write))

    def _do_copy(self, name: str, block: int) -> None:
        self._spend("copy")
        engine = self.sites[name].engine
        assert engine is not None and engine._transfer is not None
        copier: Any = engine._transfer.copier
        copier.block(block)

    def _do_start(self, name: str) -> None:
        self.sites[name].start()

    def _do_return(self, source: str) -> None:
        site, standby = self.sites["s"], "s" not in self.plan.active
        site.settings = replace(site.settings, source=f"nbd://{source}", standby=standby)
        site.start()

    def _do_kill(self, name: str) -> None:
        self._spend("kill")
        self._die(self.sites[name], "kill")

    def _do_power(self, name: str) -> None:
        self._spend("power")
        self._die(self.sites[name], "power")

    def _die(self, site: Site, how: str) -> None:
        site.die(power=how == "power")
        if how == "power":
            self.ledger.power_failed(site.name)

    def _do_cut(self, one: str, other: str) -> None:
        self._spend("cut")
        self.network.cut_link((one, other))

    def _do_heal(self, one: str, other: str) -> None:
        self.network.cut.discard((one, other))

    def _do_long(self) -> None:
        self._spend("long")
        self.kernel.now_s += _LONG_S

    def settle(self, rounds: int = 60) -> bool:
        """Let everything go on until nothing more happens but waiting; whether that came."""
        for _ in range(rounds):
            busy = False
            while self.network.late:
                self.perform(("late", 0))
            while self.network.waiting:
                self.perform(("deliver", 0))
                busy = True
            for task in list(self.kernel.tasks):
                if task.ended or not task.runnable:
                    continue
                busy = busy or not (task.timed and not (task.ready and task.ready()))
                self.kernel.run(task)
            if not busy:
                return True
        return False

    def after_step(self) -> None:
        """A site that has become active has promised that all before is durable."""
        for name, site in self.sites.items():
            if site.engine is None or site.settings.source is None:
                continue
            if site.life.state in (State.ACTIVE, State.COMPLETE):
                if site.meta is not None and site.meta.base is not None:
                    self.gone_on_from.add(str(site.meta.base.seal))
                if name not in self.took_over:
                    self.took_over.add(name)
                    self.ledger.flush()
            else:
                self.took_over.discard(name)

    def close(self) -> None:
        for site in self.sites.values():
            site.die(power=False)


def _thread(task: Task) -> str:
    """What the task is, without site and number."""
    return task.name.partition("/")[2].rstrip("0123456789")


def template_of(plan: Plan, root: Path) -> World:
    """What a world at `root` begins with, ready made: its files, moved aside."""
    world = World(plan, root)
    world.close()
    aside = root.with_name(f"{root.name}.template")
    root.rename(aside)
    for site in world.sites.values():
        site.storage.root = aside / site.name
    return world
