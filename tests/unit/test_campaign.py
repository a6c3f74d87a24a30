"""The campaign's own parts: what a sector may hold, worlds by seed, and the shrinker."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.campaign.ledger import Ledger, first_number
from tests.campaign.planted import BUGS
from tests.campaign.runfile import RunFile
from tests.campaign.shrink import Worlds, smaller
from tests.campaign.world import Event, World, world
from tests.support.stamps import ZEROS, source_sector, written

SECTORS = 64
FIRST = first_number(0, 1)


def acknowledged(ledger: Ledger, *numbers: int, site: str = "A") -> None:
    """Writes of sector 3, sent and acknowledged one after the other."""
    for number in numbers:
        ledger.note(0.0, "send", FIRST + number, 3, 1, 0, site)
        ledger.note(0.0, "ack", FIRST + number, 0)


def flush(ledger: Ledger, number: int, site: str = "A") -> None:
    ledger.note(0.0, "flush", FIRST + number, site)
    ledger.note(0.0, "flushed", FIRST + number)


def holds(ledger: Ledger, number: int) -> bool:
    """Whether sector 3 may hold that write."""
    data = written(FIRST + number, 3, 1) if number else source_sector(3)
    return ledger.wrong(3, data) is None


def test_what_was_acknowledged_last_is_all_that_may_be_read() -> None:
    ledger = Ledger(SECTORS)
    assert holds(ledger, 0)
    acknowledged(ledger, 1, 2)
    assert [holds(ledger, number) for number in range(3)] == [False, False, True]
    assert "acknowledged there" in str(ledger.wrong(3, ZEROS))


def test_power_takes_back_what_was_not_flushed_at_that_site() -> None:
    ledger = Ledger(SECTORS)
    acknowledged(ledger, 1)
    flush(ledger, 2)
    acknowledged(ledger, 3, 4)
    ledger.power_failed("B")
    assert [holds(ledger, number) for number in (0, 1, 3, 4)] == [False, False, False, True]
    ledger.power_failed("A")
    assert [holds(ledger, number) for number in (0, 1, 3, 4)] == [False, True, True, True]


def test_a_flush_covers_only_what_was_acknowledged_when_it_was_sent() -> None:
    ledger = Ledger(SECTORS)
    acknowledged(ledger, 1)
    ledger.note(0.0, "flush", FIRST + 2, "A")
    acknowledged(ledger, 3)
    ledger.note(0.0, "flushed", FIRST + 2)
    ledger.power_failed("A")
    assert [holds(ledger, number) for number in (0, 1, 3)] == [False, True, True]


def test_a_disk_that_has_moved_is_durable_at_its_source() -> None:
    ledger = Ledger(SECTORS)
    acknowledged(ledger, 1)
    ledger.moved("A")
    ledger.power_failed("A")
    assert [holds(ledger, number) for number in (0, 1)] == [False, True]


def test_an_orphan_may_come_late_as_long_as_its_server_lives() -> None:
    ledger = Ledger(SECTORS)
    ledger.note(0.0, "send", FIRST + 1, 3, 1, 0, "A")
    ledger.note(0.0, "orphan", FIRST + 1)
    acknowledged(ledger, 2)
    assert holds(ledger, 1)
    ledger.died("A")
    assert holds(ledger, 1) and holds(ledger, 2), "it may have come just before"
    acknowledged(ledger, 3)
    assert [holds(ledger, number) for number in (1, 2, 3)] == [False, False, True]


def test_zeros_are_told_from_data() -> None:
    ledger = Ledger(SECTORS)
    assert ledger.wrong(3, ZEROS)
    ledger.note(0.0, "send", FIRST + 1, 3, 1, 1, "A")
    assert ledger.wrong(3, ZEROS) is None
    ledger.note(0.0, "ack", FIRST + 1, 0)
    assert ledger.wrong(3, ZEROS) is None and not holds(ledger, 0)


def test_a_world_is_its_seeds_and_survives_json() -> None:
    worlds = [world(seed) for seed in range(1, 200)]
    assert worlds == [world(seed) for seed in range(1, 200)]
    for one in worlds:
        assert World.from_json(json.loads(json.dumps(one.to_json()))) == one
        assert list(one.events) == sorted(one.events, key=lambda event: event.at_s)
        assert "move" in {event.what for event in one.events}
    assert len({str(one) for one in worlds}) == len(worlds)
    assert {one.route for one in worlds} == {"AB", "ABA", "ABC"}


def test_shrinking_leaves_what_is_needed_and_nothing_else() -> None:
    events = tuple(Event(float(at), f"event {at}") for at in range(12))
    tried: list[int] = []

    def fails(worlds: Worlds) -> bool:
        tried.append(len(worlds[-1].events))
        return {"event 3", "event 10"} <= {event.what for event in worlds[-1].events}

    before, last = world(1), world(2).with_events(events)
    (left,) = smaller((before, last), fails, lambda _text: None)
    assert [event.what for event in left.events] == ["event 3", "event 10"]
    assert len(tried) < 40


def test_worlds_that_are_needed_before_stay() -> None:
    before, last = world(1), world(2)
    worlds = smaller((before, last), lambda worlds: len(worlds) == 2, lambda _text: None)
    assert worlds[0] == before and worlds[1] == last.with_events(())


def test_a_run_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = RunFile.of((world(1), world(2)), {"wrong": ["why"]})
    run.write(tmp_path / "run.json")
    assert RunFile.read(tmp_path / "run.json") == run
    assert run.elsewhere() == []
    assert "commit is" in replace(run, commit="another").elsewhere()[0]
    (tmp_path / "other.json").write_text('{"format": 7}')
    with pytest.raises(ValueError, match="not a run of a campaign: format 7"):
        RunFile.read(tmp_path / "other.json")


#: runs in a process of its own, for it changes the product: what was replaced, and how it is called
_REPLACED = """
import importlib, inspect, json, pkgutil, sys
import relocator

for module in pkgutil.walk_packages(relocator.__path__, "relocator."):
    if module.name not in ("relocator.plugin", "relocator.__main__"):
        importlib.import_module(module.name)

def functions():
    for name, module in sorted(sys.modules.items()):
        if name.startswith("relocator"):
            for attribute, value in vars(module).items():
                if inspect.isfunction(value):
                    yield (name, attribute), value
                elif inspect.isclass(value) and value.__module__ == name:
                    for method, function in vars(value).items():
                        if inspect.isfunction(function):
                            yield (name, attribute, method), function

def parameters(function):
    return [(one.name, one.kind.name) for one in inspect.signature(function).parameters.values()]

before = dict(functions())
exec(sys.stdin.read())
found = [(parameters(before[at]), parameters(value))
         for at, value in functions() if before.get(at) is not value]
print(json.dumps(found))
"""


@pytest.mark.parametrize("bug", [bug for bug, text in BUGS.items() if text])
def test_a_planted_bug_takes_the_place_of_something_that_is_there(bug: str) -> None:
    """Else the servers would die of the planting, and each seed would seem to have found it."""
    argv = [sys.executable, "-c", _REPLACED]
    done = subprocess.run(argv, input=BUGS[bug], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found
    for old, new in found:
        names = [name for name, kind in new if not kind.startswith("VAR_")]
        takes_any = [kind for _, kind in new if kind.startswith("VAR_")]
        assert old == new or (takes_any and names == [name for name, _ in old[: len(names)]])
