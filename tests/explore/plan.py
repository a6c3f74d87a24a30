"""What a world is made of, and how much may happen in it."""

from dataclasses import dataclass, field
from typing import Any

Action = tuple[Any, ...]

#: how an operator may say each verb
VERBS: dict[str, tuple[str, dict[str, Any]]] = {
    "activate": ("activate", {}),
    "activate --hold": ("activate", {"hold": True}),
    "release": ("release", {}),
    "withdraw": ("withdraw", {}),
    "seal": ("seal", {}),
    "unseal": ("unseal", {}),
    "unseal --force": ("unseal", {"force": True}),
    "pause": ("pause", {}),
    "resume": ("resume", {}),
}


@dataclass(frozen=True)
class Plan:
    """What there is in a world, and how much of what may happen in it.

    `proxies`: site -> its source. `budget`: what may happen how often: `verb`, `write`, `copy`,
    `kill`, `power`, `cut`, `long`. `kept`: the source has `store=`. `back`: once it is sealed, the
    source may be started as a proxy of this site. `roams`: any site may be written at any time;
    else only the one where the operator has the guest run.
    """

    name: str
    proxies: dict[str, str]
    verbs: dict[str, tuple[str, ...]]
    budget: dict[str, int]
    kept: bool = True
    active: frozenset[str] = frozenset()  # sites that are started with mode=active
    back: str | None = None
    roams: bool = True
    writers: tuple[str, ...] = ("s", "p")
    crashers: tuple[str, ...] = ("s", "p")
    settings: dict[str, Any] = field(default_factory=dict)
    ahead: tuple[int, ...] = ()  # blocks that are copied before it begins
    slow_writes: bool = False  # a guest's write takes two steps
    written: int = 2  # blocks that the guests write, in turn
    #: threads that go on as soon as they can: they have nothing to decide
    eager: frozenset[str] = frozenset({"stay_ready", "rest"})
    #: threads that the world does without: the first only commits, the others copy
    without: frozenset[str] = frozenset({"keeper"})
