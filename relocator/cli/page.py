"""The live page of `relocator status --watch`: what is here, how fast the rest comes, when it ends.

The plugin counts; the page differentiates. It keeps the counters of the last minute (`History`) and
reads rates off their differences, so on-demand and background are told apart without the plugin
keeping more. Percentiles can't be had that way (two histograms' percentiles have no difference):
those are since the start, and the page says so.

Time left is what is absent over the mean rate of the last minute. Its range comes from the spread
of that minute: the 90th and the 10th percentile of the rate over `SMOOTH_S` seconds. A longer
relocation averages more, but links drift rather than flicker, so the range isn't narrowed for that.

Everything here is pure: samples in, renderables of a given width and height out.
"""

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean, quantiles
from typing import Any, NamedTuple

from rich.cells import cell_len
from rich.console import Group
from rich.panel import Panel
from rich.text import Text

from relocator.cli.common import human_bytes, human_clock, human_rate, human_time

KEEP_S = 60.0
SMOOTH_S = 3.0
RECENT_S = 5.0
SILENT_S = 3.0
_LEAST_MAP_ROWS = 3
#: first: nothing is here; last: all of it; between: parts, equally wide
SHADES = {True: "·░▒▓█", False: ".:-+#"}
SPARKS = {True: "▁▂▃▄▅▆▇█", False: "_.-~=+*#"}
WRITTEN = "w"
_KINDS = {
    "read_present": "reads of what is here",
    "read_absent": "reads that waited",
    "write": "writes",
}
_STATES = {
    "standby": "reads pass through; the VM still runs at the source",
    "activating": "the VM moves here; its writes wait until the source is sealed",
    "active": "the VM runs here, its disk is being fetched",
    "complete": "all of the disk is here",
    "sealed": "the disk has moved on; writes are refused",
    "relaying": "the disk has moved on; what it lacks is still fetched",
    "outdated": "the source goes on with another version of it; writes are refused",
}


class Sample(NamedTuple):
    """The counters at one moment."""

    at_s: float
    on_demand_bytes: int
    background_bytes: int

    @property
    def arrived_bytes(self) -> int:
        """Payload fetched by both copies."""
        return self.on_demand_bytes + self.background_bytes


class TimeLeft(NamedTuple):
    """Seconds: the expectation and its range; None is unknown, or for `most_s` no end in sight."""

    expected_s: float | None
    least_s: float | None = None
    most_s: float | None = None


class History:
    """The samples of the last `KEEP_S` seconds."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()

    def add(self, at_s: float, status: dict[str, Any]) -> None:
        """Note a status object. Counters that went back mean a new plugin: begin anew."""
        new = Sample(at_s, status["on_demand_bytes"], status["background_bytes"])
        if self._samples and new.arrived_bytes < self._samples[-1].arrived_bytes:
            self._samples.clear()
        self._samples.append(new)
        while self._samples[0].at_s < at_s - KEEP_S:
            self._samples.popleft()

    def rates(self, counter: str) -> list[float]:
        """Bits a second of a `Sample` field between neighbouring samples, oldest first."""
        return [_rate(old, new, counter) for old, new in pairwise(self._samples)]

    def recent(self, counter: str) -> float:
        """Bits a second over the last `RECENT_S` seconds."""
        return self._over(RECENT_S, counter)[-1] if len(self._samples) > 1 else 0.0

    def _over(self, span_s: float, counter: str) -> list[float]:
        """Rates over sliding spans; shorter ones only while there is no more."""
        samples, first, found = list(self._samples), 0, []
        for new in samples[1:]:
            while samples[first + 1].at_s <= new.at_s - span_s:
                first += 1
            if new.at_s - samples[first].at_s >= span_s or first == 0:
                found.append(_rate(samples[first], new, counter))
        return found

    def time_left(self, missing_bytes: int) -> TimeLeft:
        """When `missing_bytes` will have arrived, at the rates of the last minute."""
        if missing_bytes == 0:
            return TimeLeft(0.0, 0.0, 0.0)
        rates = self._over(SMOOTH_S, "arrived_bytes")
        if len(rates) < 3 or self.recent("arrived_bytes") == 0:
            return TimeLeft(None)
        tenths = quantiles(rates, n=10, method="inclusive")
        mean = fmean(rates)
        slow, fast = min(tenths[0], mean), max(tenths[-1], mean)
        bits = missing_bytes * 8
        return TimeLeft(bits / mean, bits / fast, bits / slow if slow > 0 else None)


def _rate(old: Sample, new: Sample, counter: str) -> float:
    changed: int = getattr(new, counter) - getattr(old, counter)
    return changed * 8 / (new.at_s - old.at_s) if new.at_s > old.at_s else 0.0


def clock(seconds: float) -> str:
    """A duration without needless hours: `0:42`, `12:05`, `1:02:03`."""
    return human_time(seconds).removeprefix("0:").removeprefix("0")


def time_left_text(status: dict[str, Any], history: History) -> str:
    """The time left with its range, or why there is none to tell."""
    missing = (status["total_blocks"] - status["present_blocks"]) * status["block_bytes"]
    left = history.time_left(missing)
    if missing == 0:
        return "none, all is here"
    if not status["source_connected"]:
        return "unknown: the source can't be reached"
    if left.expected_s is None:
        if status["background"] != "on":
            return f"unknown: the background copy is {status['background']}"
        return "unknown: measuring, or nothing arrives"
    if left.least_s is None or left.most_s is None:
        return f"{clock(left.expected_s)} ({clock(left.least_s or 0)} or more)"
    return f"{clock(left.expected_s)} ({clock(left.least_s)} to {clock(left.most_s)})"


def link_text(status: dict[str, Any]) -> str:
    """Whether the source can be asked."""
    if status["role"] == "target":
        return "no longer needed"
    if not status["source_connected"]:
        return "not connected"
    silent_s = status.get("source_silent_s", 0.0)  # an older version's server doesn't say
    return "connected" if silent_s < SILENT_S else f"connected, silent for {silent_s:.0f} s"


def behind_text(status: dict[str, Any]) -> str:
    """What a switch now would leave at the source."""
    behind_s = status["behind_s"]
    takes = "" if behind_s is None else f", {behind_s:.1f} s of copying"
    return f"{human_bytes(status['behind_bytes'])} behind{takes}, {status['rounds']} rounds"


def deadline_text(status: dict[str, Any]) -> str | None:
    """The deadline, and whether it holds; None if there is none."""
    if (at_s := status["finish_by_s"]) is None:
        return None
    late_s = status["late_s"]
    by = f"to be complete by {human_clock(at_s)}"
    if late_s == 0:
        return f"{by}: holds"
    return f"{by}: no end in sight" if late_s is None else f"{by}: {clock(late_s)} too late"


def sparkline(values: Sequence[float], width: int, top: float, *, fancy: bool) -> str:
    """`values`, the newest at the right, as bars of `top`; several a bar if they don't fit."""
    each = max(1, -(-int(KEEP_S) // width))
    start = len(values) % each
    means = [fmean(values[at : at + each]) for at in range(start, len(values), each)]
    bars = SPARKS[fancy]
    line = "".join(
        " " if value <= 0 else bars[min(len(bars) - 1, int(value / top * len(bars)))]
        for value in means[-width:]
    )
    return line.rjust(width)


def shade(share: float, *, fancy: bool) -> str:
    """The sign of a stretch of which `share` is here; only an exact 0 and 1 are the extremes."""
    signs = SHADES[fancy]
    if share in (0, 1):
        return signs[-1] if share else signs[0]
    return signs[1 + min(2, int(share * 3))]


def disk_map(cells: dict[str, list[float]], width: int, *, fancy: bool) -> Text:
    """The disk from start to end, row by row; a stretch with any written block is marked."""
    text = Text(no_wrap=True)
    for at, (present, dirty) in enumerate(zip(cells["present"], cells["dirty"], strict=True)):
        if at and at % width == 0:
            text.append("\n")
        if dirty:
            text.append(WRITTEN, "bold black on yellow" if present == 1 else "bold yellow")
        else:
            text.append(shade(present, fancy=fancy), "green" if present else "dim")
    return text


def legend(*, fancy: bool) -> Text:
    """What the signs of the map mean."""
    signs = SHADES[fancy]
    text = Text.assemble((signs[-1], "green"), " here  ", (signs[1:4], "green"), " partly  ")
    text.append(signs[0], "dim").append(" still at the source  ")
    return text.append(WRITTEN, "bold yellow").append(" written by the VM here")


def line(status: dict[str, Any], history: History) -> str:
    """The page for something that isn't a terminal: one line."""
    share = _share(status)
    parts = [f"{status['role']}, {status['state']}", f"{share:5.1f} % here"]
    if status["role"] == "proxy":
        for name, counter in (("background", "background_bytes"), ("on demand", "on_demand_bytes")):
            parts.append(f"{name} {human_rate(history.recent(counter))}")
        parts.append(f"left {time_left_text(status, history)}")
        parts.extend(filter(None, [deadline_text(status)]))
    if status["error"]:
        parts.append(f"error: {status['error']}")
    return "  ".join(parts)


def _share(status: dict[str, Any]) -> float:
    """Per cent present; 100 only when it is all, so that 99.99 isn't taken for the end."""
    present, total = status["present_blocks"], status["total_blocks"]
    return 100.0 if present == total else min(99.9, 100 * present / total)


class Page:
    """One state of the page, `width` by `height` characters."""

    def __init__(
        self,
        status: dict[str, Any],
        history: History,
        *,
        title: str,
        width: int,
        height: int,
        fancy: bool = True,
    ) -> None:
        self._status, self._history, self._title = status, history, title
        self._width, self._fancy = width, fancy
        self._above = [*self._head(), Text(), *self._progress()]
        self._below = [*self._rates(), Text(), *self._requests(), *self._remarks()]
        self.map_width = width - 4
        rows = height - len(self._above) - len(self._below) - 3  # two of frame, one of prompt
        self.map_rows = max(_LEAST_MAP_ROWS, rows)

    def render(self, cells: dict[str, list[float]]) -> Group:
        """The page with the map that the plugin gave for `map_width * map_rows` cells."""
        stretch = human_bytes(self._status["size_bytes"] / max(1, len(cells["present"])))
        panel = Panel(
            disk_map(cells, self.map_width, fancy=self._fancy),
            title=f"the disk, from start to end; one sign is {stretch}",
            title_align="left",
            subtitle=legend(fancy=self._fancy),
            subtitle_align="left",
            border_style="dim",
            width=self._width,
        )
        return Group(*self._above, panel, *self._below)

    def _spread(self, left: Text, right: Text) -> Text:
        """One line: `left`, and `right` at the right edge; `left` gives way."""
        room = self._width - right.cell_len - 2
        left.truncate(max(8, room), overflow="ellipsis", pad=True)
        return left.append("  ").append_text(right)

    def _head(self) -> list[Text]:
        status = self._status
        name = Text.assemble(("Relocator ", "bold"), self._title)
        state = Text(f"{status['role']}, {status['state']}", "bold cyan")
        source = Text(f"{human_bytes(status['size_bytes'])} from {status['source']}")
        if status["role"] == "target":
            source = Text(human_bytes(status["size_bytes"]))
            link = Text("needs no source", "green")
        elif status["source_connected"]:
            link = Text("source connected", "green")
        else:
            link = Text("source NOT CONNECTED", "bold red")
        means = Text(_STATES.get(status["state"], ""), "dim")
        return [self._spread(name, state), means, self._spread(source, link)]

    def _progress(self) -> list[Text]:
        status, signs = self._status, SHADES[self._fancy]
        share = _share(status)
        present = status["size_bytes"] * status["present_blocks"] / max(1, status["total_blocks"])
        tail = f"  {human_bytes(present)} of {human_bytes(status['size_bytes'])}"
        room = max(10, self._width - 19 - cell_len(tail))
        done = int(room * share / 100)
        bar = Text.assemble(("here     ", "bold"), (f"{share:6.1f} %  ", "bold"))
        bar.append(signs[-1] * done, "green").append(signs[0] * (room - done), "dim").append(tail)
        told = filter(None, [time_left_text(status, self._history), deadline_text(status)])
        left = Text.assemble(("time left  ", "bold"), ", ".join(told))
        return [bar, left]

    def _rates(self) -> list[Text]:
        room = max(10, min(60, self._width - 47))
        background = self._history.rates("background_bytes")
        on_demand = self._history.rates("on_demand_bytes")
        top = max([1.0, *background, *on_demand])
        cap = self._status["rate_cap_bits_per_s"]
        how = "" if self._status["background"] == "on" else f" {self._status['background']}"
        limit = f", cap {human_rate(cap)}" if cap and not how else ""
        scale = f"  the last minute, up to {human_rate(top)}"
        lines = [Text("fetched".ljust(26) + "now".rjust(17) + scale, "bold")]
        for name, counter, rates in (
            (f"background{how}{limit}", "background_bytes", background),
            ("because the VM waited", "on_demand_bytes", on_demand),
        ):
            now = human_rate(self._history.recent(counter))
            text = Text(name).append(now.rjust(43 - len(name))).append("  ")
            spark = sparkline(rates, room, top, fancy=self._fancy)
            lines.append(text.append(spark, "cyan"))
        return lines

    def _requests(self) -> list[Text]:
        heads = ("count", "half within", "99 % within")
        title = "the VM's requests since the start".ljust(34)
        lines = [Text(title + "".join(head.rjust(14) for head in heads), "bold")]
        for kind, name in _KINDS.items():
            seen = self._status["requests"][kind]
            count, p50_s, p99_s = seen["count"], seen["p50_s"], seen["p99_s"]
            times = (_milliseconds(p50_s), _milliseconds(p99_s)) if count else ("-", "-")
            row = (f"{count:,}", *times)
            lines.append(Text(name.ljust(34) + "".join(cell.rjust(14) for cell in row)))
        return lines

    def _remarks(self) -> list[Text]:
        remarks = [Text(f"note: {note}", "dim") for note in self._status["notes"]]
        if self._status["error"]:
            remarks.append(Text(f"last error: {self._status['error']}", "bold red"))
        for remark in remarks:
            remark.truncate(self._width, overflow="ellipsis")
        return remarks


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"
