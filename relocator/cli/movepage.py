"""The live page of `relocator migrate`, and the summary at its end.

On a terminal: a line of what goes on, a bar for the guest's memory and one for each disk. Elsewhere
a line a stage, or with `--json` an object a line.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from relocator.cli.common import human_bytes, human_rate, human_time
from relocator.moving import telling
from relocator.moving.stages import ABOUT, Stage
from relocator.moving.telling import Report

_LINE_EVERY_S = 5.0


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Nobody reads any more: say nothing, rather than end the process."""
        self.quiet = True


class Page:
    """Shows a move as it goes on."""

    def __init__(self, disks: list[str], *, as_json: bool) -> None:
        self._disks = disks
        self._as_json = as_json
        self._console = _Console(stderr=True, markup=False)
        self._stage: Stage | None = None
        self._said_s = 0.0
        self._note = ""
        self._bars: Progress | None = None
        self._tasks: list[TaskID] = []
        self._began_s = time.monotonic()

    def __enter__(self) -> "Page":
        if self._console.is_terminal and not self._as_json:
            columns = (
                TextColumn("{task.description}", justify="right"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[said]}"),
            )
            self._bars = Progress(*columns, console=self._console)
            names = ["memory", *(f"disk {name}" for name in self._disks)]
            self._tasks = [self._bars.add_task(name, total=None, said="") for name in names]
            with unheard():
                self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            with unheard():
                self._bars.stop()

    def tell(self, now: telling.Progress) -> None:
        """Show where the move stands; it goes on if nobody sees that."""
        with unheard():
            self._tell(now)

    def _tell(self, now: telling.Progress) -> None:
        if self._as_json:
            self._json(now)
            return
        if now.stage is not self._stage or now.note not in ("", self._note):
            self._stage, self._note = now.stage, now.note or self._note
            about = ABOUT[now.stage]
            at = human_time(time.monotonic() - self._began_s)
            self._console.print(f"{at}  {about.going_on}{f': {now.note}' if now.note else ''}")
        if self._bars is not None:
            self._update(self._bars, now)

    def _json(self, now: telling.Progress) -> None:
        if now.stage is self._stage and time.monotonic() < self._said_s + 1.0:
            return
        self._stage, self._said_s = now.stage, time.monotonic()
        fields: dict[str, Any] = {"stage": now.stage.value, "owner": ABOUT[now.stage].owner}
        if now.memory is not None:
            fields["memory"] = now.memory.get("ram")
        if now.disks:
            fields["disks"] = dict(zip(self._disks, now.disks, strict=True))
        if now.note:
            fields["note"] = now.note
        print(json.dumps(fields), flush=True, file=sys.stdout)

    def _update(self, bars: Progress, now: telling.Progress) -> None:
        if now.memory is not None and "ram" in now.memory:
            ram = now.memory["ram"]
            said = f"{human_bytes(ram['transferred'])} sent, {human_rate(ram['mbps'] * 1e6)}"
            done = ram["total"] - ram["remaining"]
            bars.update(self._tasks[0], total=ram["total"], completed=done, said=said)
        elif now.stage in (Stage.ARRIVED, Stage.MOVED):
            bars.update(self._tasks[0], total=1, completed=1, said="at the destination")
        for task, status in zip(self._tasks[1:], now.disks, strict=False):
            if status is None:
                bars.update(task, said="no answer")
                continue
            said = f"{status['state']}, {human_rate(status['rate_bits_per_s'])}"
            bars.update(
                task, total=status["total_blocks"], completed=status["present_blocks"], said=said
            )


@contextmanager
def unheard() -> Iterator[None]:
    """What is said within the block may be heard by nobody: the terminal has gone, or a pipe's end.

    A move must not end for that, least of all with the guest standing still.
    """
    try:
        yield
    except OSError as error:
        for stream in (sys.stdout, sys.stderr):
            _hush(stream)
        before: BaseException | None = error
        while before is not None:  # what failed on the way out of an interruption hides it
            if isinstance(before, KeyboardInterrupt):
                raise before from None
            before = before.__context__


def _hush(stream: TextIO) -> None:
    """What nobody reads goes nowhere, also what is in the buffer still."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def say(text: str, stream: TextIO) -> None:
    """A line, if anybody hears it."""
    with unheard():
        print(text, file=stream, flush=True)


def summary(report: Report) -> Iterator[str]:
    """What came of a move, in lines."""
    parts = report.downtime
    if parts.total_s is not None:
        each = (
            ("drain", parts.drain_s),
            ("takeover", parts.takeover_s),
            ("state", parts.state_s),
        )
        told = ", ".join(f"{name} {_ms(value)}" for name, value in each if value is not None)
        yield f"the guest stood still for {_ms(parts.total_s)}: {told}"
    if parts.frozen_s is not None:
        yield f"its file systems were frozen for {_ms(parts.frozen_s)}"
    if parts.release_s is not None:
        yield f"its writes could pass {_ms(parts.release_s)} after it ran again"
    for kind, answered_s in (
        ("read", parts.first_read_answered_s),
        ("write", parts.first_write_answered_s),
    ):
        if answered_s is not None:
            yield f"its first {kind} was answered {_ms(answered_s)} after it ran again"
    ram = report.memory.get("ram")
    if ram:
        yield f"memory: {human_bytes(ram['transferred'])} sent"
    for name, status in report.disks.items():
        fetched = status["on_demand_bytes"] + status["background_bytes"]
        proof = status.get("verified_blocks")
        verified = f", {proof:,} blocks compared with the source" if proof is not None else ""
        if skipped := status.get("skipped_blocks"):
            verified += f", {skipped:,} skipped as free"
        yield f"disk {name}: {status['state']}, {human_bytes(fetched)} fetched{verified}"
    for note in report.notes:
        yield f"note: {note}"
    yield "The guest and its disks are at the destination; the source may be switched off."


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
