"""What happens to the link while a run goes on: the events' text, and when they are applied."""

import time
from typing import Any

import pytest

from testbed.network import link_events
from testbed.network.link_events import LinkEvent, Schedule, Step
from testbed.network.wan import LinkProfile, ProfileError

LINK = LinkProfile(rtt_s=0.02, rate_bits_per_s=10**8)
ENDS = ("left", "right")


def parse(text: str, profile: LinkProfile) -> list[Step]:
    """The steps of events separated by commas."""
    events = [link_events.parse(one) for one in text.split(",")] if text else []
    return link_events.steps(events, profile)


class Recorder:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, /, **fields: Any) -> float:
        self.events.append((name, fields))
        return 0.0


def test_a_cut_ends_by_itself() -> None:
    steps = parse("5s:cut:10s", LINK)
    assert [(step.at_s, step.is_cut) for step in steps] == [(5.0, True), (15.0, False)]
    assert steps[1].profile == LINK
    assert [step.change for step in steps] == [{"cut": True}, {"cut": False}]


def test_an_event_is_kept_as_it_was_given() -> None:
    assert link_events.parse("5s:rtt:200ms") == LinkEvent(5.0, "rtt", 0.2)
    assert link_events.parse(" 1s:cut:1.5s ") == LinkEvent(1.0, "cut", 1.5)


def test_changes_add_up_in_order_of_time() -> None:
    steps = parse("9s:loss:1%, 3s:rate:10mbit,6s:rtt:200ms", LINK)
    assert [step.at_s for step in steps] == [3.0, 6.0, 9.0]
    assert steps[-1].profile == LinkProfile(0.2, 10**7, 0.01)
    assert [step.change for step in steps] == [
        {"rate_bits_per_s": 10**7},
        {"rtt_s": 0.2},
        {"loss": 0.01},
    ]


def test_a_change_within_a_cut_shows_when_the_cut_ends() -> None:
    steps = parse("1s:cut:4s,2s:rate:10mbit", LINK)
    assert [step.is_cut for step in steps] == [True, True, False]
    assert steps[-1].profile.rate_bits_per_s == 10**7


def test_one_cut_may_begin_where_another_ends() -> None:
    for text in ("1s:cut:1s,2s:cut:1s", "2s:cut:1s,1s:cut:1s", "0.1s:cut:0.2s,0.3s:cut:1s"):
        assert [step.is_cut for step in parse(text, LINK)] == [True, False, True, False]


def test_no_event_is_no_step() -> None:
    assert parse("", LINK) == []
    assert Schedule([], ENDS, Recorder()).done()


@pytest.mark.parametrize(
    "text",
    [
        *("5s", "5s:cut", "cut:5s", "5:cut:1s", "5s:cut:0", "5s:cut:1", "5s:burn:1s", ","),
        *("5s:rate:0.1", "5s:rate:fast", "5s:loss:1", "1s:cut:5s,2s:cut:1s", "-1s:cut:1s"),
    ],
)
def test_a_wrong_event_is_refused_by_parameter(text: str) -> None:
    with pytest.raises(ProfileError, match=r"^event="):
        parse(text, LINK)


def test_an_impossible_link_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"^loss="):
        parse("1s:loss:100%", LINK)


def test_steps_are_applied_in_their_time_and_logged() -> None:
    done: list[tuple[str, float, LinkProfile]] = []
    start_s = time.monotonic()
    recorder = Recorder()

    def note(what: str) -> Any:
        return lambda profile, _: done.append((what, time.monotonic() - start_s, profile))

    steps = parse("20ms:cut:30ms,80ms:rate:10mbit", LINK)
    with Schedule(steps, ENDS, recorder, note("set"), note("cut")) as schedule:
        schedule.start(start_s)
        while not schedule.done():
            schedule.check()
            time.sleep(0.005)
    assert [what for what, _, _ in done] == ["cut", "set", "set"]
    assert all(took_s >= step.at_s for (_, took_s, _), step in zip(done, steps, strict=True))
    assert recorder.events == [("link-changed", step.change) for step in steps]


def test_a_link_that_is_still_cut_is_mended_at_the_end() -> None:
    done: list[str] = []
    with Schedule(
        parse("0:cut:1000s", LINK),
        ENDS,
        Recorder(),
        lambda _profile, _ends: done.append("set"),
        lambda _profile, _ends: done.append("cut"),
    ) as schedule:
        schedule.start(time.monotonic())
        while not done:
            time.sleep(0.005)
    assert done == ["cut", "set"]


def test_a_failure_is_raised() -> None:
    def broken(_profile: LinkProfile, _ends: tuple[str, str]) -> None:
        raise OSError("no such interface")

    with pytest.raises(RuntimeError, match="no such interface"):
        with Schedule(parse("0:rate:1mbit", LINK), ENDS, Recorder(), broken) as schedule:
            schedule.start(time.monotonic())
            time.sleep(0.05)
