"""From scenarios to cells: a cell is one run, with an id that reads well and its command line.

    compare/rtt=100ms,rate=100mbit/relocator/s1      scenario / axes / system / seed

A cell knows everything that its run depends on but the code. Cells come in a stable order, ids are
unique. A cell may need others: the oracle's order is made of what the guest asked for in another
run (`trace_of`); and a cell whose run would be another's run again, argument for argument, does not
run: it gets a copy (`same_as`).
"""

import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from experiments.scenarios import scenario as scenarios
from experiments.scenarios import schema
from experiments.scenarios.scenario import Scenario, System, Variant
from experiments.scenarios.schema import ScenarioError
from testbed import systems
from testbed.network import wan

TRACE = "oracle.trace"
MODULE = "testbed.migration"
REAL_GUEST_LAB = "testbed.migration.lab"  # which brings the guest along


@dataclass(frozen=True)
class Cell:
    """One run. `axes`: axis -> label; `arguments`: of testbed.migration; `programs`: those of this
    machine that are taken into the lab; `may_fail`: why a failure would be a finding."""

    id: str
    scenario: str
    axes: Mapping[str, str]
    system: str
    seed: int
    clock: str
    timeout_s: int
    arguments: tuple[str, ...]
    trace_of: str | None = None
    same_as: str | None = None
    programs: tuple[str, ...] = ()
    may_fail: str | None = None

    @property
    def needs(self) -> list[str]:
        """Cells that must have run before."""
        return [other for other in (self.same_as, self.trace_of) if other is not None]

    @property
    def lacks(self) -> str | None:
        """What has to be installed before it can run here."""
        return " and ".join(name for name in self.programs if shutil.which(name) is None) or None

    def finding(self, outcome: str | None) -> str | None:
        """What a run that ended like this shows of its system; None for one that ended well, and
        for a failure that its scenario does not expect."""
        return self.may_fail if outcome == "failed" else None

    def command(
        self, python: str, run: str, trace: str = TRACE, find: Callable[[str], str] = str
    ) -> list[str]:
        """What to execute in the project's directory; the run's files come to `run`.

        `find` gives a program's path.
        """
        lab = ["--out", run, "--clock", self.clock, "--seed", str(self.seed)]
        lab += ["--timeout", str(self.timeout_s)]
        along = [trace] if self.trace_of is not None else []
        for path in [*along, *map(find, self.programs)]:
            lab += ["--file", path]
        entry = REAL_GUEST_LAB if "qemu" in self.arguments else "testbed.lab"
        return [python, "-m", entry, "run", *lab, "--", MODULE, *self.arguments]

    def document(self) -> dict[str, Any]:
        lists = {key: list(getattr(self, key)) for key in ("arguments", "programs")}
        return {**asdict(self), "axes": dict(self.axes), **lists}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Cell":
        tuples = {key: tuple(document.get(key, ())) for key in ("arguments", "programs")}
        return cls(**{**document, **tuples})


def expand(found: Iterable[Scenario], seeds: int | None = None) -> list[Cell]:
    """Every cell of the scenarios; ScenarioError if one can't be.

    `seeds` is how many there are of each, in place of what the scenarios say.
    """
    profiles = scenarios.profiles()
    result: list[Cell] = []
    first: dict[tuple[object, ...], str] = {}  # what a run depends on -> the first such cell
    original: dict[str | None, str] = {}  # cell -> the one that runs
    for one in found:
        for cell in _cells(one, profiles, seeds):
            key = (cell.clock, cell.seed, cell.arguments, original.get(cell.trace_of))
            runs = original[cell.id] = first.setdefault(key, cell.id)
            same = replace(cell, same_as=runs, trace_of=None)
            result.append(cell if runs == cell.id else same)
    return result


def quick_or_full(quick: bool, seeds: int | None = None) -> list[Cell]:
    return expand(scenarios.load_all(quick), seeds)


def _cells(
    one: Scenario, profiles: Mapping[str, Mapping[str, str]], seeds: int | None
) -> Iterator[Cell]:
    count = seeds or int(one.values["run.seeds"])
    for variants in itertools.product(*(axis.variants for axis in one.axes)):
        named = {axis.name: v.label for axis, v in zip(one.axes, variants, strict=True)}
        text = ",".join(f"{name}={label}" for name, label in named.items())
        prefix = "/".join([one.name, text] if text else [one.name])
        for system, seed in itertools.product(one.systems, range(1, count + 1)):
            name = f"{prefix}/{system.name}/s{seed}"
            values = _values(one, variants, system, profiles)
            _check(one, name, values)
            trace_of = f"{prefix}/{system.trace_of}/s{seed}" if system.trace_of else None
            yield Cell(
                id=name,
                scenario=one.name,
                axes=named,
                system=system.name,
                seed=seed,
                clock=values["run.clock"],
                timeout_s=int(values["run.timeout"]),
                arguments=(
                    *_options(values, system, trace_of is not None),
                    *_events(one, variants),
                    *("--seed", str(seed)),
                ),
                trace_of=trace_of,
                programs=systems.SYSTEMS[system.system].programs,
                may_fail=system.may_fail,
            )


def _values(
    one: Scenario,
    variants: Sequence[Variant],
    system: System,
    profiles: Mapping[str, Mapping[str, str]],
) -> dict[str, str]:
    """Everything that is set for a cell; the profile's link under what is said of the link."""
    values = dict(one.values)
    for variant in variants:
        values |= variant.values
    values |= system.values
    profile = values.pop("network.profile", None)
    if profile is not None and profile not in profiles:
        right = schema.nearest(profile, profiles)
        raise ScenarioError(one.file, "network.profile", profile, right)
    link = profiles.get(profile or "", {})
    return {f"network.{key}": value for key, value in link.items()} | values


def _options(values: Mapping[str, str], system: System, trace: bool) -> Iterator[str]:
    for table in ("network", "disk", "workload", "timing"):
        for key in schema.TABLES[table]:
            if f"{table}.{key}" in values:
                yield "--" + schema.OPTION.get((table, key), key)
                yield values[f"{table}.{key}"]
    yield from ("--tolerance", values["run.tolerance"], "--system", system.system)
    known = schema.settings_of(system.system)
    settings = {key: values.get(f"settings.{key}") for key in known}
    if trace:
        settings["order"] = f"trace:{TRACE}"
    for key, value in settings.items():
        if value not in (None, schema.USUAL.get(key)):
            yield from ("--set", f"{key}={value}")


def _events(one: Scenario, variants: Sequence[Variant]) -> Iterator[str]:
    given = [variant.events for variant in variants if variant.events is not None]
    for event in given[-1] if given else one.events:
        yield from ("--event", event)


def _check(one: Scenario, cell: str, values: Mapping[str, str]) -> None:
    """What only shows when all values are together."""

    def wrong(key: str, right: str) -> ScenarioError:
        return ScenarioError(one.file, key, values.get(key), f"{right} (in the cell {cell})")

    for key in ("network.rtt", "network.rate", "disk.size", "disk.fill", "run.seeds"):
        if key not in values:
            raise wrong(key, "missing; give it here, in the profile or in base.toml")
    try:
        wan.LinkProfile(
            wan.parse_time_s("rtt", values["network.rtt"]),
            wan.parse_rate_bits_per_s("rate", values["network.rate"]),
            wan.parse_fraction("loss", values.get("network.loss", "0")),
            wan.parse_time_s("jitter", values.get("network.jitter", "0")),
        )
    except wan.ProfileError as error:
        key = f"network.{str(error).partition('=')[0]}"
        raise wrong(key, str(error).partition(": ")[2]) from error
    size = wan.parse_size_bytes("size", values["disk.size"])
    if wan.parse_size_bytes("fill", values["disk.fill"]) >= size:
        raise wrong("disk.fill", f"must be below disk.size, {values['disk.size']}")
    end_s = wan.parse_time_s("duration", values["timing.duration"])
    if wan.parse_time_s("switch-at", values["timing.switch-at"]) >= end_s:
        raise wrong("timing.switch-at", f"must be before {values['timing.duration']}, the end")


def write(path: Path, cells: Sequence[Cell]) -> None:
    """All cells as JSON, for those who run them elsewhere."""
    text = json.dumps({"cells": [cell.document() for cell in cells]}, indent=1, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")


def read(path: Path) -> list[Cell]:
    document = json.loads(path.read_text(encoding="utf-8"))
    return [Cell.of(one) for one in document["cells"]]
