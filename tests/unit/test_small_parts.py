"""States, latency histograms, the rate meter, and the control protocol's answers."""

import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relocator.errors import ConfigError, StateError
from relocator.moving.downtime import Clocks
from relocator.moving.monitor import Event
from relocator.running import states
from relocator.running.control import answer
from relocator.running.latency import Histogram, Requests
from relocator.running.states import State
from relocator.running.status import RateMeter

WAITS = ("seal_s", "drop_s", "write_waited_s")


def test_every_state_is_reached_only_by_its_events() -> None:
    assert states.after(State.ACTIVE, "last-block-arrived") is State.COMPLETE
    with pytest.raises(StateError, match="last-block-arrived can't happen in state complete"):
        states.after(State.COMPLETE, "last-block-arrived")


def test_a_refusal_names_verb_state_and_what_would_be_right() -> None:
    with pytest.raises(
        StateError, match="'pause' is refused in state 'complete'; it needs: activating, active"
    ):
        states.check(State.COMPLETE, "pause")
    with pytest.raises(StateError, match="unknown verb 'explode'; known: activate"):
        states.check(State.ACTIVE, "explode")


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=200))
def test_percentiles_are_never_below_and_at_most_a_quarter_above(durations_ns: list[int]) -> None:
    histogram = Histogram()
    for duration_ns in durations_ns:
        histogram.add(duration_ns)
    assert histogram.count == len(durations_ns)
    for percent in (50, 99, 100):
        rank = max(1, -(-len(durations_ns) * percent // 100))
        true_s = sorted(durations_ns)[rank - 1] / 1e9
        seen_s = histogram.percentile_s(percent)
        assert seen_s is not None
        assert true_s <= seen_s <= true_s * 1.25 + 1e-9


def test_an_empty_histogram_has_no_percentiles() -> None:
    assert Histogram().as_dict() == {"count": 0, "p50_s": None, "p99_s": None, "p999_s": None}


def test_the_first_requests_after_a_word_are_noted_and_all_are_counted() -> None:
    clock = iter([10.0, 11.0, 12.0, 13.0])
    requests = Requests(lambda: next(clock))
    requests.by_kind["write"].add(1000)
    for first in (10.0, 12.0):
        requests.watch()
        assert requests.status()["first_read_at_s"] is None
        for kind in ("read_absent", "write", "read_present", "read_absent", "write"):
            requests.by_kind[kind].add(1000)
        status = requests.status()
        assert (status["first_read_at_s"], status["first_write_at_s"]) == (first, first + 1)
    counts = {kind: found["count"] for kind, found in requests.status()["requests"].items()}
    assert counts == {"read_present": 2, "read_absent": 4, "write": 5}


def test_the_first_io_is_that_of_the_disk_where_it_was_first() -> None:
    resumed = Event("RESUME", {}, 100.0, 105.0)  # the clocks of the two hosts differ
    disks = [
        {"first_read_at_s": read, "first_write_at_s": None} | dict.fromkeys(WAITS)
        for read in (100.5, 100.25, None)
    ]
    parts = Clocks().parts([], [resumed], {}, [*disks, None])
    assert parts.first_read_answered_s == 0.25
    assert parts.first_write_answered_s is None


@pytest.mark.parametrize("arrives_s", [0.05, 0.001])
def test_the_parts_of_a_pause_add_up_whatever_the_clocks_are(arrives_s: float) -> None:
    """The last one ends at the destination: by its clock the guest may run too early there."""
    stamps = (("STOP", {}, 0.0), *(("MIGRATION", {"status": s}, at) for s, at in _PAUSE.items()))
    source = [Event(name, data, 100 + at, 107 + at) for name, data, at in stamps]
    destination = [Event("RESUME", {}, 50.0, 107 + arrives_s)]
    parts = Clocks().parts(source, destination, {}, [])
    each = (parts.drain_s, parts.takeover_s, parts.state_s)
    assert each == pytest.approx((0.002, 0.008, max(0.0, arrives_s - 0.01)))
    assert sum(filter(None, each)) == pytest.approx(parts.total_s)


#: when QEMU tells what, after it has stopped the guest
_PAUSE = {"pre-switchover": 0.002, "device": 0.01}


def test_the_meter_speaks_of_the_last_seconds() -> None:
    now = [100.0]
    meter = RateMeter(lambda: now[0])
    total = 0
    for _ in range(100):
        now[0] += 1
        total += 1_000_000
        rate = meter.bits_per_s(total)
    assert rate == pytest.approx(8e6)
    for _ in range(10):
        now[0] += 1
        rate = meter.bits_per_s(total)
    assert rate == 0


def test_who_reads_the_meter_at_the_same_time_spoils_no_rate() -> None:
    class Moment(float):
        """While it is compared, somebody else reads the meter, once."""

        def __le__(self, other: float) -> bool:
            if not others:
                others.append(threading.Thread(target=meter.bits_per_s, args=(1_000_000,)))
                others[0].start()
                others[0].join(0.2)
            return float(self) <= other

    others: list[threading.Thread] = []
    now = [0.0]
    meter = RateMeter(lambda: Moment(now[0]))
    for now[0], total in ((1.0, 0), (101.0, 1_000_000)):
        rate = meter.bits_per_s(total)
    assert rate == pytest.approx(80_000)


def refuse(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    if verb == "status":
        return {"role": "proxy", **arguments}
    raise ConfigError("rate=x: not a rate")


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (b'{"verb": "status", "a": 1}', {"ok": True, "role": "proxy", "a": 1}),
        (b'{"verb": "set"}', {"ok": False, "error": "rate=x: not a rate"}),
        (b"[1]", {"ok": False, "error": 'write an object with a verb, such as {"verb": "status"}'}),
        (
            b'{"verb": 5}',
            {"ok": False, "error": 'write an object with a verb, such as {"verb": "status"}'},
        ),
    ],
)
def test_every_line_gets_one_answer(line: bytes, wanted: dict[str, Any]) -> None:
    assert answer(refuse, line) == wanted


def test_a_line_that_is_no_json_is_refused_not_fatal() -> None:
    reply = answer(refuse, b"status please\n")
    assert reply["ok"] is False
    assert reply["error"].startswith("not a line of JSON")
    json.dumps(reply)
