"""What a move tells while it goes on, and at its end; and whom."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from relocator.moving.downtime import Parts
from relocator.moving.stages import Stage


@dataclass(frozen=True)
class Progress:
    """Where a move stands: QEMU's counters of memory, and each disk's status (None: no answer)."""

    stage: Stage
    memory: dict[str, Any] | None = None
    disks: tuple[dict[str, Any] | None, ...] = ()
    note: str = ""


@dataclass
class Report:
    """What came of a move."""

    downtime: Parts = field(default_factory=Parts)
    memory: dict[str, Any] = field(default_factory=dict)
    disks: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def nothing(*_: Any) -> None:
    """Nobody is told."""


@dataclass(frozen=True)
class Hooks:
    """Whom a move tells.

    `ahead` is called before anything is touched, and returns when the move may begin; `watch` when
    it does, and `at_rest` when it has ended with guest and disks at one side; `tell` hears of every
    change, `seam` of every place at which the process may be interrupted.
    """

    tell: Callable[[Progress], None] = nothing
    ahead: Callable[[], None] = nothing
    watch: Callable[[], None] = nothing
    at_rest: Callable[[], None] = nothing
    seam: Callable[[str], None] = nothing
