"""What is here already is not sent: blocks taken from seeds, images at this site, by their digests.

One thread walks the plan ahead of the copier. Of each unit it asks the source for a digest, large
units first, and where none of the seeds has the same at that place, for those of the small units
in it. It reads a seed into memory, and if the digest of that is the source's, keeps those very
bytes: what a seed is, or becomes meanwhile, can cost bytes but never a wrong block. A unit is then
*settled*. Just before the copier fetches what is absent of it still, it looks for that at other
places of the seeds, most of which have been read by then.

Nobody owns a block while its digest is on its way: a guest that misses it fetches it as ever, and
only what nobody owns by then is taken (see hydration.py; an answer is content of the source, so
what the handover disowns is asked again). At the source a digest costs reading and hashing, which
`rate_bits_per_s` bounds; on the link 32 bytes a unit, which count against the copy's own cap.

A second walk there is not: whatever is absent after the first is fetched. A process that starts
again compares what is absent by then.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from threading import Thread

from relocator.copying.elsewhere import Elsewhere
from relocator.copying.holes import Holes
from relocator.copying.hydration import Hydration
from relocator.copying.pacer import HOLD_S, Pacer
from relocator.copying.pacing import TokenBucket
from relocator.copying.plan import Plan
from relocator.copying.seeds import Seed, matching
from relocator.copying.settling import Settling
from relocator.errors import StoreError, UpstreamError
from relocator.source.digests import DIGEST_BYTES, Digests
from relocator.source.endpoint import Endpoint
from relocator.source.identity import Guard
from relocator.source.upstream import Request, Upstream
from relocator.store.bitmap import Bitmap
from relocator.store.store import Store

Range = tuple[int, int]
LARGE_BYTES, SMALL_BYTES = 256 << 10, 4 << 10
#: large units asked for at once; questions on their way, whose answers are 32 KiB at most
BATCH_UNITS, IN_FLIGHT = 16, 16


@dataclass(eq=False, slots=True)
class Question:
    """For the digests of the units `first..end`; `asked` as for `Hydration.fill`.

    `lost`: nothing came of the source's, not even an error.
    """

    digests: Digests
    first: int
    end: int
    asked: int = 0
    reply: Request | None = None
    lost: bool = False


class Seeding:
    """Takes from `seeds` what the source at `endpoint` holds too, as long as `pacer` lets it."""

    def __init__(
        self,
        store: Store,
        endpoint: Endpoint,
        *,
        upstream: Upstream,
        hydration: Hydration,
        pacer: Pacer,
        plan: Plan,
        holes: Holes,
        seeds: Sequence[Seed],
        rate_bits_per_s: float | None,
    ) -> None:
        self._store = store
        self._geometry = store.geometry
        self._upstream = upstream
        self._hydration = hydration
        self._pacer = pacer
        self._plan = plan
        self._holes = holes
        self._seeds = seeds
        self._bucket = TokenBucket(rate_bits_per_s)
        guard = Guard(store, endpoint, aside=True)
        block_bytes = store.geometry.block_bytes
        self._large = Digests(endpoint, max(LARGE_BYTES, block_bytes), guard)
        self._small = Digests(endpoint, max(SMALL_BYTES, block_bytes), guard)
        self._settling = Settling(store, pacer, self._large.unit_bytes)
        self._elsewhere = Elsewhere(seeds, self._small.unit_bytes, rate_bits_per_s)
        #: large units -> `asked`, and the digests of what the seeds don't have at its own place
        self._missing: dict[int, tuple[int, dict[int, bytes]]] = {}
        self._taken_up = Bitmap(-(-store.geometry.size_bytes // self._large.unit_bytes))
        self._planned: Iterator[Range] = iter(())
        self._generation = -1
        self._walked = False
        self._questions: deque[Question] = deque()
        self._in_flight = 0
        self._answers: deque[Question] = deque()
        self._refusal: str | None = None
        self._began_s: float | None = None
        self._took_s: float | None = None
        #: digests that have come over the link; what the source has read and hashed for them
        self.digest_bytes = self.digested_bytes = 0
        self._thread = Thread(target=self._run, name="seeding", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread's end; after the pacer's `stop` and the upstream's `close`."""
        if self._thread.is_alive():
            self._thread.join()

    def renew(self) -> None:
        """As `Connection.renew`."""
        self._large.renew()
        self._small.renew()

    @property
    def ended(self) -> bool:
        """Whether no more is compared."""
        return self._settling.ended

    @property
    def seconds(self) -> float:
        """How long seeds have been compared, or took to be."""
        if self._began_s is None:
            return 0.0
        return time.monotonic() - self._began_s if self._took_s is None else self._took_s

    @property
    def notes(self) -> list[str]:
        """What an operator should know."""
        found = [self._refusal, *(seed.failure for seed in self._seeds)]
        return [note for note in found if note is not None]

    def want(self, first: int, end: int) -> bool:
        """Settle these blocks next; False if no more is compared. From any thread; never waits."""
        return self._settling.want(first, end)

    def settled(self) -> Iterator[Range]:
        """The plan's ranges, each as soon as it is settled, for the copier's thread."""
        return self._settling.take(self._look_elsewhere)

    def _look_elsewhere(self, unit: int) -> None:
        """Take what the seeds don't have at its own place from other places."""
        asked, missing = self._missing.pop(unit, (0, {}))
        for small, known in missing.items():
            blocks = self._blocks(small, small + 1, self._small.unit_bytes)
            if self._store.present.all(*blocks):
                continue
            if (data := self._elsewhere.find(known)) is not None:
                self._keep(blocks, asked, data)

    def _blocks(self, first: int, end: int, unit_bytes: int) -> Range:
        """The blocks of the units `first..end`."""
        times = unit_bytes // self._geometry.block_bytes
        return first * times, min(end * times, self._geometry.total_blocks)

    def _keep(self, blocks: Range, asked: int, data: memoryview) -> None:
        """Make present what has the source's digest."""
        try:
            self._hydration.fill(*blocks, asked, data)
        except StoreError as error:  # it is fetched, if the store gets room again
            self._trouble(error)

    def _trouble(self, error: StoreError) -> None:
        self._pacer.complain(str(error))
        self._pacer.sleep(HOLD_S)

    # Below this line everything runs on the seeding thread.

    def _run(self) -> None:
        if self._store.meta.base is None:
            self._refusal = "seed: not used: the source is not a relocator"
        elif self._pacer.wait_until(lambda: self._pacer.running):
            self._began_s = time.monotonic()
            self._large.start()
            self._small.start()
            self._walk()
            self._large.close()
            self._small.close()
            self._elsewhere.end()
            self._took_s = time.monotonic() - self._began_s
        self._settling.end()
        for seed in self._seeds:
            seed.close()

    def _walk(self) -> None:
        """Once over the disk, in the order of the plan, until the copier has seen all of it."""
        while not self._over and self._pacer.wait_until(lambda: self._over or self._has_work()):
            if self._answers:
                self._judge(self._answers.popleft())
                continue
            self._look_ahead()
            if self._questions and self._in_flight < IN_FLIGHT:
                self._ask(self._questions.popleft())

    @property
    def _over(self) -> bool:
        if self._refusal is not None or all(seed.failure for seed in self._seeds):
            return True
        if self._in_flight or self._questions or not self._walked:
            return False
        return self._settling.empty and self._plan.generation == self._generation

    def _has_work(self) -> bool:
        if self._answers or self._settling.wants or self._plan.generation != self._generation:
            return True
        more = self._questions or (not self._walked and self._settling.has_room)
        return bool(more) and self._in_flight < IN_FLIGHT

    def _look_ahead(self) -> None:
        """Take up what comes next, as far as there is room."""
        if self._plan.generation != self._generation:
            self._generation = self._plan.generation
            self._planned = chain(self._plan.named(), self._plan.ranges())
            self._walked = False
            self._settling.clear()
        for blocks in self._settling.wanted():
            self._take_up(blocks, urgent=True)
        while not self._walked and len(self._questions) < 2 and self._settling.has_room:
            if (planned := next(self._planned, None)) is None:
                self._walked = True
            else:
                self._take_up(planned, urgent=False)

    def _take_up(self, blocks: Range, *, urgent: bool) -> None:
        """Ask for the units of a range that nobody has asked for."""
        if self._store.present.all(*blocks):
            return
        try:
            self._holes.fill(*blocks)
        except StoreError as error:  # its holes are fetched, if the store gets room again
            self._trouble(error)
        for first, end in list(self._taken_up.clear_runs(*self._settling.units(blocks))):
            self._taken_up.set(first, end)
            found = [
                Question(self._large, at, min(at + BATCH_UNITS, end))
                for at in range(first, end, BATCH_UNITS)
            ]
            if urgent:
                self._questions.extendleft(reversed(found))
            elif not self._extend(found[0]):
                self._questions.extend(found)
        self._settling.add(blocks, urgent=urgent)

    def _extend(self, more: Question) -> bool:
        """Let the last question ask for what follows, too; whether that can be."""
        last = self._questions[-1] if self._questions else None
        if last is None or last.digests is not self._large or last.end != more.first:
            return False
        if more.end - last.first > BATCH_UNITS:
            return False
        last.end = more.end
        return True

    def _ask(self, question: Question) -> None:
        length = (question.end - question.first) * question.digests.unit_bytes
        while (wait_s := self._bucket.delay_s(time.monotonic())) > 0 and not self._pacer.over:
            self._pacer.sleep(wait_s)
        if not self._pacer.allow((question.end - question.first) * DIGEST_BYTES):
            self._questions.appendleft(question)  # given back, the disk may lack more
            return
        self._bucket.take(length, time.monotonic())

        def answered(reply: Request) -> None:
            question.reply = reply
            question.lost = reply.error is not None and not question.digests.connected
            self._answers.append(question)
            self._pacer.wake()

        question.asked = self._hydration.disowned
        self._in_flight += 1
        question.digests.ask(question.first, question.end, answered)

    def _judge(self, question: Question) -> None:
        """An answer: take what the seeds have of it, and ask more closely for the rest."""
        self._in_flight -= 1
        reply = question.reply
        assert reply is not None
        if reply.error is not None:
            self._failed(question)
            return
        self.digest_bytes += len(reply.data)
        self.digested_bytes += (question.end - question.first) * question.digests.unit_bytes
        missing = self._compare(question, reply.data)
        if self._hydration.disowned != question.asked:
            self._questions.appendleft(question)
            return
        times = self._large.unit_bytes // self._small.unit_bytes
        if question.digests is self._small or times == 1:
            if missing:
                self._elsewhere.begin()
            for unit, known in missing.items():
                _, digests = self._missing.setdefault(unit // times, (question.asked, {}))
                digests[unit] = known
            missing = {}
        most = -(-self._geometry.size_bytes // self._small.unit_bytes)
        for unit in reversed(missing):
            closer = Question(self._small, unit * times, min((unit + 1) * times, most))
            self._questions.appendleft(closer)
        self._settling.settle(unit for unit in self._covered(question) if unit not in missing)

    def _failed(self, question: Question) -> None:
        """A question without an answer."""
        if not question.lost:  # only this can't be read there, as its fetch will show
            self._settling.settle(self._covered(question))
        elif question.digests.connected or not self._are_refused(question.digests):
            self._questions.appendleft(question)
        else:
            self._refusal = "seed: not used: the source gives no digests"

    def _are_refused(self, digests: Digests) -> bool:
        """Whether the source answers, and gives no digests.

        That it is connected doesn't say that it answers: while seeds match, nothing is owed over
        the copy's own connections, and who is owed nothing doesn't notice a link that is silent.
        """
        with suppress(UpstreamError):  # that it can't read this is an answer, too
            self._upstream.read_into(memoryview(bytearray(1)), 0)
        return self._upstream.connected and not digests.are_given()

    def _covered(self, question: Question) -> range:
        """The large units that a question is about."""
        ours, theirs = self._large.unit_bytes, question.digests.unit_bytes
        return range(question.first * theirs // ours, -(-question.end * theirs // ours))

    def _compare(self, question: Question, theirs: bytearray) -> dict[int, bytes]:
        """Take what the seeds have at the same place; returns the digests of what they don't."""
        unit_bytes, first = question.digests.unit_bytes, question.first
        missing = {
            unit: bytes(theirs[(unit - first) * DIGEST_BYTES :][:DIGEST_BYTES])
            for unit in range(first, question.end)
            if not self._store.present.all(*self._blocks(unit, unit + 1, unit_bytes))
        }
        size_bytes = self._geometry.size_bytes
        for start, end, data in matching(self._seeds, unit_bytes, size_bytes, missing):
            self._keep(self._blocks(start, end, unit_bytes), question.asked, data)
            for unit in range(start, end):
                del missing[unit]
        return missing
