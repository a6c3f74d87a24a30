"""A world: a disk that moves along a route of sites, and the events that happen on the way.

`world(seed)` makes one; as JSON it is the file from which a run is repeated. A site's name is `A`
(where the disk is first), `B`, or `C`. Events are relative to the beginning, in seconds:

    the link      cut, blackhole (one way), rate, loss
    processes     kill (of a site's server, or of the guest)
    a store       power, full, failing, slow
    the image     outside: its server ends in order, something else writes to it, the server starts
    the address   impostor: the server of another disk is found there for a while
    the operator  move (the VM too; held, and given back, if so told), activate, release, withdraw,
                  unseal, seal, pause, resume, set, refresh, onward (the next leg of the route
                  begins: back to A, or on to C)
"""

import random
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

LINK = ("cut", "blackhole", "rate", "loss")
STORE = ("power", "full", "failing", "slow")
BETWEEN = ("outside", "impostor")
#: of a store that is full: but for what it keeps back
SPARED = "spared"
OPERATOR = (
    *("activate", "release", "withdraw", "unseal", "seal"),
    *("pause", "resume", "set", "refresh"),
)
#: the largest disk
MOST_KIB = 4096
#: a guest's patience (`retry-timeout`) outlasts every fault
PATIENCE_S = 60
#: as Linux has it
_SEND_BUFFER_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens at `at_s`; a fault ends after `for_s`. `detail` depends on `what`."""

    at_s: float
    what: str
    who: str = ""
    for_s: float = 0.0
    detail: Any = None

    def __str__(self) -> str:
        detail = "" if self.detail is None else f" {self.detail}"
        lasts = f" for {self.for_s:g} s" if self.for_s else ""
        return f"{self.at_s:g} s: {self.what} {self.who}{detail}{lasts}".replace("  ", " ")


@dataclass(frozen=True, slots=True)
class World:
    """What is moved, how, and what happens. `keys` are the proxies' further parameters.

    `planted` is a known bug that is put back (see planted.py); `change_s` is how often the order of
    the servers' threads changes (see schedule.py), on average, 0 for the kernel's own order. With a
    small `send_buffer_bytes` a server waits for the link while it answers, and others behind it.
    """

    seed: int
    size_kib: int
    block_bytes: int
    route: str
    rtt_ms: int
    rate_mbit: int
    tls: bool
    seeded: bool
    depth: int
    pace_s: float
    writeback_s: float
    lasts_s: float
    keys: tuple[str, ...] = ()
    events: tuple[Event, ...] = field(default=())
    planted: str | None = None
    change_s: float = 0.0
    send_buffer_bytes: int = _SEND_BUFFER_BYTES

    @property
    def sectors(self) -> int:
        return self.size_kib * 2

    def to_json(self) -> dict[str, Any]:
        """As `from_json` takes it."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: dict[str, Any]) -> Self:
        """The world that was written down."""
        events = tuple(Event(**event) for event in found["events"])
        return cls(**{**found, "keys": tuple(found["keys"]), "events": events})

    def with_events(self, events: tuple[Event, ...]) -> Self:
        """The same world, in which something else happens."""
        return replace(self, events=events)


def world(seed: int) -> World:
    """The world of a seed."""
    choose = random.Random(f"world {seed}")
    size_kib = choose.choice(
        (1024, 1536, 2048, 3072, MOST_KIB, 1024 + 4 * choose.randrange(1, 500))
    )
    block_bytes = choose.choice((4096, 4096, 4096, 8192, 65536))
    rate_mbit = choose.choice((5, 10, 20, 50))
    seeded = choose.random() < 0.3
    keys = [
        f"order={choose.choice(('recent,in-use,hot,sequential', 'sequential', 'random', 'hot'))}",
        f"window={choose.choice(('auto', 'auto', '64K', '1M', '16M'))}",
        f"seal-brings={choose.choice(('auto', 'auto', '0', '256K'))}",
        f"refresh={choose.choice(('0.3', '1', '1', '5', 'off'))}",
        f"background={choose.choice(('on', 'on', 'on', 'off'))}",
        f"rate={choose.choice(('none', '4M', '2M', '1M'))}",
        f"connections={choose.choice((2, 2, 3))}",
        f"readahead={choose.choice(('auto', '0'))}",
        f"retry-timeout={PATIENCE_S}",
    ]
    found = World(
        seed=seed,
        size_kib=size_kib,
        block_bytes=block_bytes,
        route=choose.choice(("AB", "AB", "ABA", "ABC")),
        rtt_ms=choose.choice((4, 20, 20, 80)),
        rate_mbit=rate_mbit,
        tls=choose.random() < 0.2,
        seeded=seeded,
        depth=choose.choice((1, 2, 4)),
        pace_s=choose.choice((0.02, 0.05)),
        writeback_s=choose.choice((0.1, 0.5, 30.0)),
        lasts_s=round(choose.uniform(5.0, 9.0), 2),
        keys=tuple(keys),
    )
    change_s = random.Random(f"threads {seed}").choice((0.0, 0.02, 0.1, 0.5))
    buffer = random.Random(f"buffers {seed}").choice((_SEND_BUFFER_BYTES, 16 << 10))
    events = sorted(
        (
            *_events(found, choose),
            *_between(found, random.Random(f"between {seed}")),
            *_back(found, random.Random(f"back {seed}")),
        ),
        key=lambda event: event.at_s,
    )
    return replace(found, events=tuple(events), change_s=change_s, send_buffer_bytes=buffer)


def _events(found: World, choose: random.Random) -> tuple[Event, ...]:
    """The operator's plan, faults all along, and now and then a verb at the wrong moment."""
    legs = len(found.route) - 1
    events = []
    for leg in range(legs):
        begins, ends = (found.lasts_s * part / legs for part in (leg, leg + 1))
        if leg:
            events.append(Event(round(begins, 3), "onward"))
        moves = begins + choose.uniform(0.15, 0.7) * (ends - begins)
        events += _moves(choose, moves)
        near = choose.random() < 0.6  # most of what can go wrong goes wrong around the switch
        for _ in range(choose.randint(1, 3) if near else 0):
            events.append(_fault(found, choose, moves + choose.uniform(-0.15, 0.6)))
    for _ in range(choose.randint(1, 4)):
        events.append(_fault(found, choose, choose.uniform(0.2, found.lasts_s)))
    for _ in range(choose.randint(0, 3)):
        events.append(_verb(choose, choose.uniform(0.3, found.lasts_s)))
    return tuple(events)


def _between(found: World, choose: random.Random) -> tuple[Event, ...]:
    """In every other world, what happens between two lives of a server, or while one starts."""
    if choose.random() < 0.5:
        return ()
    kind = choose.choice(("power", "kill", "full", "outside", "impostor"))
    legs = len(found.route) - 1
    leg, part = choose.randrange(legs), choose.uniform(0.02, 1.0)
    if kind == "outside":  # while the source has the disk
        part *= 0.4
    at_s, soon_s = found.lasts_s * (leg + part) / legs, choose.uniform(0.02, 0.8)
    who, source = choose.choice(found.route), found.route[leg]
    events = {
        "power": (Event(0.0, "kill", who, 1.0 + soon_s), Event(0.3, "power", who, 0.1)),
        "kill": (Event(0.0, "kill", who, 0.2), Event(0.2 + soon_s, "kill", who, 0.2)),
        "full": (Event(0.0, "full", who, 1.2 + soon_s, SPARED), Event(0.1, "kill", who, 0.2)),
        "outside": (Event(0.0, "outside", source, soon_s),),
        "impostor": (
            Event(0.0, "impostor", source, 0.6 + soon_s),
            *((Event(0.4, "activate", detail={}),) * choose.randrange(2)),
        ),
    }[kind]
    return tuple(
        replace(event, at_s=round(at_s + event.at_s, 3), for_s=round(event.for_s, 3))
        for event in events
    )


def _back(found: World, choose: random.Random) -> tuple[Event, ...]:
    """Of every third disk that goes back, a server that is killed on the way."""
    if found.route[0] != found.route[-1] or choose.random() > 1 / 3:
        return ()
    at_s = found.lasts_s * choose.uniform(0.55, 0.75)  # it sets out at the half, or as all is there
    who = choose.choice(found.route[-2:])
    return (Event(round(at_s, 3), "kill", who, round(choose.uniform(0.1, 0.6), 3)),)


def _moves(choose: random.Random, at_s: float) -> list[Event]:
    """A move: held for a while or not, and now and then given back first."""
    held = {"hold_s": round(choose.uniform(0.1, 1.0), 3), "back": False}
    kind = choose.random()
    if kind < 0.55:
        return [Event(round(at_s, 3), "move")]
    if kind < 0.75:
        return [Event(round(at_s, 3), "move", detail=held)]
    again_s = at_s + held["hold_s"] + choose.uniform(0.2, 1.5)
    first = Event(round(at_s, 3), "move", detail=held | {"back": True})
    return [first, Event(round(again_s, 3), "move")]


def _fault(found: World, choose: random.Random, at_s: float) -> Event:
    what = choose.choices(
        ("cut", "blackhole", "rate", "loss", "kill", "power", "full", "failing", "slow"),
        (18, 8, 5, 5, 34, 16, 6, 4, 4),
    )[0]
    at_s = round(max(0.1, at_s), 3)
    for_s = round(choose.choice((choose.uniform(0.05, 0.5), choose.uniform(0.3, 3.0))), 3)
    who = ""
    detail: Any = None
    if what == "kill":
        who = choose.choices((*found.route, "guest"), (3,) * len(found.route) + (2,))[0]
    elif what == "rate":
        detail = choose.choice((200, 1000))  # kbit/s
    elif what == "loss":
        detail = choose.choice((0.01, 0.05))
    elif what == "blackhole":
        detail = choose.choice((0, 1))  # which end's packets get lost
    elif what in STORE:
        who = choose.choice(found.route)
        detail = choose.choice((5, 50)) if what == "slow" else None  # ms
    return Event(at_s, what, who, for_s, detail)


def _verb(choose: random.Random, at_s: float) -> Event:
    what = choose.choices(OPERATOR, (2, 1, 2, 3, 1, 1, 1, 1, 1))[0]
    detail: Any = None
    if what == "set":
        detail = choose.choice(
            ({"rate": "500k"}, {"rate": "none"}, {"window": "32K"}, {"order": "random"})
        )
    elif what == "activate":
        detail = choose.choice(({}, {"hold": True}))
    return Event(round(at_s, 3), what, detail=detail)
