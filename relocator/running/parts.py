"""What the parts of a running disk share. Made once by the engine, and never changed.

`Faults` has a place for each part that may fail for a while, so that one part's success doesn't
hide what another has to say.
"""

from dataclasses import dataclass

from relocator.config import Config
from relocator.copying.copier import Copier
from relocator.copying.heat import Heat
from relocator.copying.hydration import Hydration
from relocator.copying.pacer import Pacer
from relocator.copying.plan import Plan
from relocator.copying.recent import Recent
from relocator.copying.seeding import Seeding
from relocator.running.latency import Requests
from relocator.running.lifecycle import Lifecycle
from relocator.source.upstream import Upstream
from relocator.store.store import Store

#: the parts, the worst trouble first
COMMIT, COMPLETION, HANDOVER, COPY = PARTS = ("commit", "completion", "handover", "copy")


class Faults:
    """What stands in the way at present. Each part is reported by one thread at a time."""

    def __init__(self) -> None:
        self._found: dict[str, str | None] = dict.fromkeys(PARTS)

    def report(self, part: str, message: str | None) -> None:
        """A part fails with `message`, or works (None)."""
        self._found[part] = message

    def told(self, part: str) -> str | None:
        """What a part has reported last."""
        return self._found[part]

    @property
    def all(self) -> dict[str, str | None]:
        """The message of each part, None where it works."""
        return self._found.copy()

    @property
    def worst(self) -> str | None:
        """The message that an operator should read first."""
        return next((message for message in self._found.values() if message is not None), None)


@dataclass(frozen=True, slots=True)
class Transfer:
    """What brings absent blocks here, for a disk that had an upstream when it was opened."""

    upstream: Upstream
    hydration: Hydration
    pacer: Pacer
    copier: Copier
    seeding: Seeding | None

    def renew(self) -> None:
        """Look again at who answers; see `Connection.renew`."""
        self.upstream.renew()
        if self.seeding is not None:
            self.seeding.renew()


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one running disk."""

    settings: Config
    store: Store
    lifecycle: Lifecycle
    heat: Heat
    recent: Recent
    plan: Plan
    faults: Faults
    requests: Requests
    transfer: Transfer | None
