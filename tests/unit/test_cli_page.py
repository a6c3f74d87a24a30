"""The live page, from made-up samples: what it says, and that it fits."""

import io
from typing import Any

import pytest
from rich.console import Console

from relocator.cli import page
from relocator.cli.page import History, Page

MIB = 1 << 20


def status(**changed: Any) -> dict[str, Any]:
    """A proxy that has half of 100 MiB."""
    seen = {"count": 0, "p50_s": 0.0, "p99_s": 0.0, "p999_s": 0.0}
    return {
        "role": "proxy",
        "state": "active",
        "size_bytes": 100 * MIB,
        "source": "nbd://10.1.0.2",
        "source_connected": True,
        "block_bytes": 4096,
        "total_blocks": 25600,
        "present_blocks": 12800,
        "dirty_blocks": 0,
        "on_demand_bytes": 0,
        "background_bytes": 0,
        "background": "on",
        "rate_cap_bits_per_s": None,
        "finish_by_s": None,
        "late_s": None,
        "notes": [],
        "error": None,
        "requests": {kind: dict(seen) for kind in ("read_present", "read_absent", "write")},
    } | changed


def history(*background_mib: float) -> History:
    """One sample a second, of the background copy's counter."""
    samples = History()
    for at, mib in enumerate(background_mib):
        samples.add(float(at), status(background_bytes=int(mib * MIB)))
    return samples


def shown(made: Page, cells: int | None = None, width: int = 80) -> str:
    """The page as text, its map half full."""
    count = made.map_width * made.map_rows if cells is None else cells
    console = Console(width=width, file=io.StringIO())
    half = count // 2
    present = [1.0] * half + [0.0] * (count - half)
    console.print(made.render({"present": present, "dirty": [0.0] * count}))
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


@pytest.mark.parametrize(("width", "height"), [(80, 24), (120, 40), (200, 60)])
@pytest.mark.parametrize("fancy", [True, False])
def test_the_page_fits_the_terminal_and_fills_it(width: int, height: int, fancy: bool) -> None:
    long = status(
        notes=["a note that goes on " * 20, "another"],
        error="no way " * 50,
        source="nbd+unix:///?socket=/" + "x" * 200,
        rate_cap_bits_per_s=1e9,
    )
    made = Page(long, history(0, 1), title="t" * 150, width=width, height=height, fancy=fancy)
    lines = shown(made, width=width).splitlines()
    assert len(lines) == height - 1
    assert max(map(len, lines)) == width
    assert "source connected" in lines[2]


def test_time_left_has_a_range_from_the_spread_of_the_rate() -> None:
    steady = history(*range(12)).time_left(10 * MIB)
    assert steady.expected_s == pytest.approx(10)
    assert steady.least_s == steady.most_s == pytest.approx(10)
    shaky = history(0, 1, 2, 3, 8, 13, 18, 19, 20, 21, 26, 31, 36).time_left(100 * MIB)
    assert shaky.expected_s and shaky.least_s and shaky.most_s
    assert 20 <= shaky.least_s < shaky.expected_s < shaky.most_s <= 100


def test_time_left_is_open_ended_if_the_copy_stood_still_for_long() -> None:
    now, stalls = status(), history(0, 5, 5, 5, 5, 5, 5, 6, 7, 8)
    assert page.time_left_text(now, stalls).endswith(" or more)")


@pytest.mark.parametrize(
    ("changed", "samples", "wanted"),
    [
        ({"present_blocks": 25600}, (0, 1, 2, 3), "none, all is here"),
        ({"source_connected": False}, (0, 1, 2, 3), "unknown: the source can't be reached"),
        ({"background": "paused"}, (1, 1, 1, 1, 1), "unknown: the background copy is paused"),
        ({}, (0,), "unknown: measuring, or nothing arrives"),
        ({}, (0, 1, 2, 2, 2, 2, 2, 2, 2), "unknown: measuring, or nothing arrives"),
        ({}, (0, 1, 2, 3, 4), "0:50 (0:50 to 0:50)"),
    ],
)
def test_time_left_says_why_it_is_unknown(
    changed: dict[str, Any], samples: tuple[float, ...], wanted: str
) -> None:
    assert page.time_left_text(status(**changed), history(*samples)) == wanted


def test_the_history_is_a_minute_and_begins_anew_after_a_restart() -> None:
    samples = history(*range(200))
    assert len(samples.rates("background_bytes")) == page.KEEP_S
    samples.add(200.0, status(background_bytes=0))
    assert samples.rates("background_bytes") == []


def test_only_exact_shares_look_empty_or_full() -> None:
    signs = [page.shade(share, fancy=True) for share in (0.0, 0.0001, 0.5, 0.9999, 1.0)]
    assert signs == ["·", "░", "▒", "▓", "█"]
    almost = status(present_blocks=25599)
    assert "99.9 % here" in page.line(almost, history(0))


def test_written_stretches_are_marked_without_relying_on_colour() -> None:
    cells = {"present": [1.0, 1.0, 0.0, 0.2], "dirty": [0.0, 0.5, 0.0, 0.2]}
    assert page.disk_map(cells, 2, fancy=True).plain == "█w\n·w"


def test_a_sparkline_puts_the_newest_at_the_right_and_shows_nothing_as_nothing() -> None:
    assert page.sparkline([0.0, 1.0, 8.0], 60, 8.0, fancy=True) == " " * 58 + "▂█"
    assert len(page.sparkline([1.0] * 60, 13, 1.0, fancy=True)) == 13


@pytest.mark.parametrize(
    ("seconds", "wanted"), [(0, "0:00"), (42.4, "0:42"), (605, "10:05"), (3723, "1:02:03")]
)
def test_durations_have_no_needless_hours(seconds: float, wanted: str) -> None:
    assert page.clock(seconds) == wanted


def test_what_is_wrong_is_on_the_page_and_on_the_line() -> None:
    lost = status(source_connected=False, error="connection refused", notes=["ext4, clean"])
    text = shown(Page(lost, history(0, 0), title="copy.sock", width=80, height=24))
    for wanted in ("source NOT CONNECTED", "last error: connection refused", "note: ext4, clean"):
        assert wanted in text
    assert "error: connection refused" in page.line(lost, history(0, 0))
