"""When the guest is frozen and thawed, and how its agent is spoken to."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from relocator.errors import ConfigError, RelocatorError
from relocator.moving import agent, freezing
from relocator.moving.address import parse
from relocator.moving.agent import Agent, parse_agents
from relocator.moving.freezing import TRIES, Freeze
from relocator.moving.reach import Reach
from relocator.moving.seen import DestVm, DiskSeen, Seen, SourceVm
from tests.support.fake_guest import COMMANDS, FakeAgent

RAM_BYTES = 1 << 30
LIMITS = {"downtime-limit": 300, "max-bandwidth": 1 << 30}
WANTED = {"downtime_limit": 300, "max_bandwidth": 1 << 30}


class FakeQemu:
    """What is asked of a QEMU."""

    def __init__(self) -> None:
        self.limits = dict(LIMITS)
        self.were: list[dict[str, int]] = []

    def call(self, command: str, **arguments: Any) -> Any:
        if command == "query-memory-size-summary":
            return {"base-memory": RAM_BYTES}
        if command == "query-migrate-parameters":
            return self.limits
        assert command == "migrate-set-parameters"
        self.were.append(self.limits)
        self.limits = self.limits | {
            name.replace("_", "-"): value for name, value in arguments.items()
        }
        return None


class Ends:
    """A guest's agent, reached at two QEMUs, and what freezes it."""

    def __init__(self, directory: Path, *deaf: str) -> None:
        reach = Reach(directory)
        self.fakes = [FakeAgent(directory / name, *deaf) for name in ("here", "there")]
        agents = [
            Agent(f"the {name}", parse("--freeze", str(directory / name)), reach)
            for name in ("here", "there")
        ]
        self.qemu = FakeQemu()
        self.freeze = Freeze(self.qemu, self.qemu, *agents)  # type: ignore[arg-type]

    def near(self, left_s: float, passes: int) -> bool:
        """So much time is left in a pass, at 1 Gbit/s."""
        ram = {"dirty-sync-count": passes, "mbps": 1000.0, "remaining": int(left_s * 125e6)}
        return self.freeze.when_near({"ram": ram})


@pytest.fixture
def deaf_to(tmp_path: Path) -> Iterator[Callable[..., Ends]]:
    with ExitStack() as all_of_them:

        def make(*commands: str) -> Ends:
            ends = Ends(tmp_path, *commands)
            for one in (*ends.fakes, ends.freeze):
                all_of_them.callback(one.close)
            return ends

        yield make


@pytest.fixture
def ends(deaf_to: Callable[..., Ends]) -> Ends:
    return deaf_to()


def begun(ends: Ends) -> None:
    ends.freeze.check()
    ends.freeze.thaw_at_source()
    ends.qemu.call("migrate-set-parameters", **ends.freeze.first_limits(WANTED))


def test_it_is_frozen_when_little_is_left_and_thawed_where_it_runs(ends: Ends) -> None:
    begun(ends)
    assert ends.qemu.limits == {"downtime-limit": 0, "max-bandwidth": RAM_BYTES // 4}
    assert not ends.near(30, 1)
    assert not ends.fakes[0].frozen
    assert ends.near(0.5, 1)
    assert ends.fakes[0].frozen
    assert ends.qemu.limits == LIMITS
    while_freezing = {"downtime-limit": 0, "max-bandwidth": int(0.5 * 125e6 / 20)}
    assert ends.qemu.were[-1] == while_freezing
    ends.freeze.check_done()
    assert ends.freeze.try_thaw()
    assert ends.fakes[1].heard[-1] == "guest-fsfreeze-thaw"


def test_a_guest_that_goes_on_writing_its_memory_is_thawed_and_frozen_again(ends: Ends) -> None:
    begun(ends)
    for at in range(1, TRIES + 1):
        assert ends.near(0.5, at)
        assert ends.fakes[0].frozen
        if at == TRIES:
            with pytest.raises(RelocatorError, match="changes faster than it is sent; it was thaw"):
                ends.near(30, at + 1)
        else:
            assert not ends.near(30, at + 1)
        assert not ends.fakes[0].frozen
        assert ends.qemu.limits["downtime-limit"] == 0
    ends.freeze.thaw_at_source()
    assert ends.qemu.limits == LIMITS


def test_a_pause_that_does_not_come_in_time_ends_the_freeze(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(ends)
    assert ends.near(0.5, 1)
    assert not ends.near(0.4, 1)
    assert ends.fakes[0].frozen
    monkeypatch.setattr(freezing, "FREEZE_S", -1.0)
    assert not ends.near(0.4, 1)
    assert not ends.fakes[0].frozen


def test_a_guest_that_is_paused_without_having_been_frozen_does_not_move(ends: Ends) -> None:
    begun(ends)
    with pytest.raises(RelocatorError, match="before its file systems were frozen"):
        ends.freeze.check_done()


def test_a_freeze_that_takes_too_long_is_named_and_ended(
    deaf_to: Callable[..., Ends], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = deaf_to("guest-fsfreeze-freeze")
    begun(ends)
    monkeypatch.setattr(agent, "FREEZE_S", 0.2)
    wanted = r"the here \(.*/here\): no answer to 'guest-fsfreeze-freeze' within 0\.2 s"
    with pytest.raises(RelocatorError, match=wanted):
        ends.near(0.5, 1)
    ends.freeze.thaw_at_source()
    assert ends.fakes[0].heard[-1] == "guest-fsfreeze-thaw"


def test_a_process_that_comes_later_thaws_what_it_does_not_know_of(ends: Ends) -> None:
    ends.fakes[0].frozen = True
    ends.qemu.limits["downtime-limit"] = 0
    ends.freeze.settle(Seen(SourceVm.HOME, DestVm.WAITING, (STANDBY,)))
    assert not ends.fakes[0].frozen
    assert ends.qemu.limits == {"downtime-limit": 300, "max-bandwidth": 128 << 20}


def test_one_that_can_not_be_thawed_is_told(
    deaf_to: Callable[..., Ends], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(freezing, "ANSWER_S", 0.1)
    monkeypatch.setattr(freezing, "PATIENCE_S", 0.3)
    ends = deaf_to("guest-fsfreeze-thaw")
    with pytest.raises(RelocatorError, match=r"may be frozen still: .*; run the same command with"):
        ends.freeze.settle(Seen(SourceVm.HOME, DestVm.WAITING, (STANDBY,)))


def test_an_agent_that_may_not_freeze_or_does_not_answer_is_named(
    deaf_to: Callable[..., Ends], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = deaf_to("guest-info")
    monkeypatch.setattr(Agent.call, "__defaults__", (0.2,))
    with pytest.raises(RelocatorError, match="no answer to 'guest-info' within"):
        ends.freeze.check()
    ends.fakes[0].deaf = ()
    ends.fakes[0].known = COMMANDS[:2]
    with pytest.raises(RelocatorError, match="doesn't allow guest-fsfreeze-freeze, guest-fsfreeze"):
        ends.freeze.check()


@pytest.mark.parametrize("text", ["", "/a", ",/b", "/a,", "/a,x://b"])
def test_two_sockets_are_wanted(text: str) -> None:
    with pytest.raises(ConfigError, match="--freeze="):
        parse_agents("--freeze", text)


STANDBY = DiskSeen({"state": "standby", "held": False}, None)
