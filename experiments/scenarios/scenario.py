"""Reads experiments/scenarios/*.toml: an experiment as a file, checked before anything runs.

A scenario says what is the same in all of its runs (network, disk, workload, timing, events),
which systems it compares, and which values it goes through (`axes`: all combinations). What it
does not say stands in base.toml. `[quick]` says what is different when there are only minutes:

    title = "..."                     one line, over its figures
    about = "..."                     the question that it answers

    [network] profile, rtt, ...       [disk] size, fill, ...      (schema.TABLES has every key)
    [workload] workloads, ...         [timing] switch-at, ...
    [run] seeds, clock, ...           [settings] of relocator, in every system of the scenario
    events = [{at = "4s", cut = "3s"}]                            (at: after the switch)

    [[systems]]
    name = "hot"                      as it is called in cells, tables and figures
    system = "relocator"              what runs; left out: the name
    background = "on"                 in place of timing.background
    settings = {order = "hot,sequential"}
    trace-of = "sequential"           the order is what the guest asked for in that system's run
    may-fail = "..."                  what is wrong with this system: its failure is a finding

    [axes]
    "network.rtt" = ["20ms", "100ms"]                             any key of the tables
    size = [{label = "32M", "disk.size" = "32M", "disk.fill" = "24M"}, ...]  set together

    [quick]                           the same tables again, and
    skip = true                       not at all, or
    systems = ["hot"]                 only these
    [quick.axes]
    "network.rtt" = ["20ms"]          only these values; of an axis of tables: only these labels

The later wins: base, base's quick, scenario, its quick, axes, system. A network's own keys win over
its profile's wherever they stand. Whatever is wrong is a `ScenarioError` with file, key and value.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.scenarios import schema
from experiments.scenarios.schema import ScenarioError, Wrong, nearest
from testbed.network import links

HERE = Path(__file__).resolve().parent
SCENARIOS = HERE
BASE = HERE / "common" / "base.toml"

_TOP = ("title", "about", "events", "systems", "axes", "quick", *schema.TABLES)
_SYSTEM = ("name", "system", "background", "settings", "trace-of", "may-fail")


@dataclass(frozen=True)
class Variant:
    """One value of an axis: what it is called and what it sets; `events` None: leaves them."""

    label: str
    values: Mapping[str, str]
    events: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Axis:
    name: str
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class System:
    """One of the systems that are compared. `trace_of`: the name of another of them."""

    name: str
    system: str
    values: Mapping[str, str] = field(default_factory=dict)
    trace_of: str | None = None
    may_fail: str | None = None


@dataclass(frozen=True)
class Scenario:
    """A checked scenario; `values` are texts of the command line by `table.key`."""

    name: str
    file: Path
    title: str
    about: str
    values: Mapping[str, str]
    events: tuple[str, ...]
    systems: tuple[System, ...]
    axes: tuple[Axis, ...]


class _File:
    """One TOML file, and the errors that name it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ScenarioError(path, "file", None, error.strerror or str(error)) from error
        except tomllib.TOMLDecodeError as error:
            raise ScenarioError(path, "file", None, f"not TOML: {error}") from error

    def wrong(self, key: str, value: object, right: str) -> ScenarioError:
        return ScenarioError(self.path, key, value, right)

    def table(self, where: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.wrong(where, value, "must be a table")
        return value

    def known(self, where: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
        for key in given:
            if key not in known:
                place = f"{where}.{key}" if where else key
                raise self.wrong(place, None, f"unknown key; {nearest(key, known)}")

    def checked(self, key: str, check: schema.Check, value: Any) -> str:
        try:
            return check(value)
        except Wrong as wrong:
            raise self.wrong(key, value, str(wrong)) from wrong

    def dotted(self, where: str, key: str, value: Any) -> tuple[str, str]:
        """`table.key` and its value as text; `where` is how the file calls it."""
        table, dot, name = key.partition(".")
        if not dot or table not in schema.TABLES:
            names = [f"{one}.{name or 'KEY'}" for one in schema.TABLES]
            raise self.wrong(where, None, f"unknown key; {nearest(key, names)}")
        self.known(where.removesuffix(f".{name}"), {name: value}, list(schema.TABLES[table]))
        return key, self.checked(where, schema.TABLES[table][name], value)

    def values(self, document: Mapping[str, Any], where: str = "") -> dict[str, str]:
        """Everything the tables of `document` set."""
        found: dict[str, str] = {}
        for name in schema.TABLES:
            for key, value in self.table(where + name, document.get(name, {})).items():
                dotted, text = self.dotted(f"{where}{name}.{key}", f"{name}.{key}", value)
                found[dotted] = text
        return found

    def events(self, where: str, value: Any) -> tuple[str, ...]:
        try:
            return tuple(schema.events(value))
        except Wrong as wrong:
            raise self.wrong(where, value, str(wrong)) from wrong

    def axis(self, name: str, given: Any) -> Axis:
        where = f"axes.{name}"
        if not isinstance(given, list) or not given:
            raise self.wrong(where, given, "give a list of values")
        if all(isinstance(item, dict) for item in given) and "." not in name:
            self.checked(where, schema.name, name)
            variants = tuple(self.variant(where, item) for item in given)
        else:
            variants = tuple(self._plain(name, where, item) for item in given)
        labels = [variant.label for variant in variants]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise self.wrong(where, twice[0], "stands there twice")
        return Axis(name.rpartition(".")[2], variants)

    def _plain(self, name: str, where: str, item: Any) -> Variant:
        key, text = self.dotted(where, name, item)
        label = text.replace(",", "+").replace("/", "+").replace(":", "-")
        return Variant(label, {key: text})

    def variant(self, where: str, item: dict[str, Any]) -> Variant:
        label = self.checked(f"{where}.label", schema.name, item.get("label"))
        values = dict(
            self.dotted(f"{where}.{key}", key, value)
            for key, value in item.items()
            if key not in ("label", "events")
        )
        events = self.events(f"{where}.events", item["events"]) if "events" in item else None
        return Variant(label, values, events)

    def system(self, number: int, given: Any) -> System:
        where = f"systems[{number}]"
        self.known(where, self.table(where, given), _SYSTEM)
        name = self.checked(f"{where}.name", schema.name, given.get("name"))
        system = given.get("system", name)
        if system not in schema.SYSTEMS:
            raise self.wrong(f"{where}.system", system, nearest(str(system), schema.SYSTEMS))
        values: dict[str, str] = {}
        if "background" in given:
            check = schema.TABLES["timing"]["background"]
            values["timing.background"] = self.checked(
                f"{where}.background", check, given["background"]
            )
        for key, value in self.table(f"{where}.settings", given.get("settings", {})).items():
            known = schema.settings_of(system)
            if not known:
                raise self.wrong(f"{where}.settings", None, f"{system} has none")
            self.known(f"{where}.settings", {key: value}, known)
            dotted, text = self.dotted(f"{where}.settings.{key}", f"settings.{key}", value)
            values[dotted] = text
        may_fail: str | None = None
        if "may-fail" in given:
            may_fail = self.checked(f"{where}.may-fail", schema.sentence, given["may-fail"])
        return System(name, system, values, given.get("trace-of"), may_fail)


def profiles(library: Mapping[str, Path] | None = None) -> dict[str, dict[str, str]]:
    """The links by name, of the test bed's library; every one says what it is, its rtt and rate."""
    found: dict[str, dict[str, str]] = {}
    for name, path in (links.library() if library is None else library).items():
        file = _File(Path(str(path)))
        file.checked(name, schema.name, name)
        file.known("", file.document, list(schema.PROFILE))
        for key in ("about", "rtt", "rate"):
            if key not in file.document:
                raise file.wrong(key, None, "missing; every link says it")
        link = {
            key: file.checked(key, schema.PROFILE[key], value)
            for key, value in file.document.items()
        }
        del link["about"]
        found[name] = link
    return found


def load(path: Path, quick: bool = False, base: Path = BASE) -> Scenario | None:
    """The scenario in a file; None if it is left out in quick mode."""
    base_file, file = _File(base), _File(path)
    base_file.known("", base_file.document, [*schema.TABLES, "quick"])
    file.known("", file.document, _TOP)
    values = base_file.values(base_file.document)
    base_quick = base_file.table("quick", base_file.document.get("quick", {}))
    base_file.known("quick", base_quick, list(schema.TABLES))
    changes = base_file.values(base_quick, "quick.")
    if quick:
        values |= changes
    values |= file.values(file.document)
    systems, axes = _systems(file), _axes(file, file.document.get("axes", {}))
    events = file.events("events", file.document.get("events", []))
    different = file.table("quick", file.document.get("quick", {}))
    file.known("quick", different, ["skip", "systems", "axes", "events", *schema.TABLES])
    changes = file.values(different, "quick.")
    if quick:
        if different.get("skip"):
            return None
        values |= changes
        events = (
            file.events("quick.events", different["events"]) if "events" in different else events
        )
        systems = _only(file, systems, different.get("systems"))
        axes = tuple(_fewer(file, axes, different.get("axes", {})))
    file.checked("file", schema.name, path.stem)
    title = file.checked("title", schema.PROFILE["about"], file.document.get("title"))
    about = file.checked("about", schema.PROFILE["about"], file.document.get("about"))
    return Scenario(path.stem, path, title, about, values, events, systems, axes)


def _systems(file: _File) -> tuple[System, ...]:
    given = file.document.get("systems")
    if not isinstance(given, list) or not given:
        raise file.wrong("systems", given, "give at least one: [[systems]], name = 'relocator'")
    found = tuple(file.system(number, item) for number, item in enumerate(given))
    names = [system.name for system in found]
    for number, system in enumerate(found):
        if names.index(system.name) != number:
            raise file.wrong(f"systems[{number}].name", system.name, "stands there twice")
        if system.trace_of is not None and system.trace_of not in names[:number]:
            before = ", ".join(names[:number]) or "none stands before it"
            right = f"must be the name of a system above: {before}"
            raise file.wrong(f"systems[{number}].trace-of", system.trace_of, right)
        if system.trace_of is not None and system.system != "relocator":
            raise file.wrong(f"systems[{number}].trace-of", system.trace_of, "relocator only")
    return found


def _axes(file: _File, given: Any) -> tuple[Axis, ...]:
    axes = tuple(file.axis(name, values) for name, values in file.table("axes", given).items())
    names = [axis.name for axis in axes]
    for name in names:
        if names.count(name) > 1:
            raise file.wrong("axes", name, "two axes would have this name in a cell's id")
    return axes


def _only(file: _File, systems: tuple[System, ...], names: Any) -> tuple[System, ...]:
    if names is None:
        return systems
    known = [system.name for system in systems]
    if not isinstance(names, list) or not names:
        raise file.wrong("quick.systems", names, f"give a list of names; known: {', '.join(known)}")
    for name in names:
        if name not in known:
            raise file.wrong("quick.systems", name, nearest(str(name), known))
    kept = tuple(system for system in systems if system.name in names)
    for system in kept:
        if system.trace_of is not None and system.trace_of not in names:
            raise file.wrong("quick.systems", names, f"{system.name} needs {system.trace_of}")
    return kept


def _fewer(file: _File, axes: tuple[Axis, ...], given: Any) -> Iterator[Axis]:
    """The axes with the values that quick mode names; a plain axis may have others there."""
    full = {**file.document.get("axes", {})}
    file.known("quick.axes", file.table("quick.axes", given), list(full))
    for axis, (key, values) in zip(axes, full.items(), strict=True):
        if key not in given:
            yield axis
        elif all(isinstance(item, dict) for item in values):
            labels = [variant.label for variant in axis.variants]
            for label in given[key]:
                if label not in labels:
                    where = f"quick.axes.{key}"
                    raise file.wrong(where, label, nearest(str(label), labels))
            chosen = tuple(variant for variant in axis.variants if variant.label in given[key])
            yield Axis(axis.name, chosen)
        else:
            yield file.axis(key, given[key])


def load_all(quick: bool = False, directory: Path = SCENARIOS) -> list[Scenario]:
    """Every scenario of a directory, by name; ScenarioError if one is wrong or there is none."""
    paths = sorted(directory.glob("*.toml"))
    if not paths:
        raise ScenarioError(directory, "file", None, "there is no scenario (*.toml) here")
    return [one for path in paths if (one := load(path, quick)) is not None]
