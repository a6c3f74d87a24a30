"""What a guest's miss sets off besides its own fetch: its surroundings next, its stream ahead.

Runs on the guest's thread while its fetch is on its way; nothing here waits.
"""

from relocator.copying.copier import Copier
from relocator.copying.pacer import Pacer
from relocator.copying.plan import Plan
from relocator.copying.readahead import Readahead


class Misses:
    """Turns misses into work for the copier; `pull_forward` says whether surroundings come next."""

    def __init__(
        self, copier: Copier, pacer: Pacer, plan: Plan, readahead: Readahead, *, pull_forward: bool
    ) -> None:
        self._copier = copier
        self._pacer = pacer
        self._plan = plan
        self._readahead = readahead
        self._pull_forward = pull_forward

    def missed(self, first: int, end: int) -> None:
        """A guest's read of the blocks `first..end` waits for the source."""
        if self._pull_forward:
            self._copier.pull(*self._plan.unit_around(first))
        ahead = self._readahead.missed(first, end, link_idle=self._pacer.link_idle)
        if ahead is not None:
            self._copier.prefetch(*ahead)
