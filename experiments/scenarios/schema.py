"""What may stand in a scenario, key by key, and how a wrong value is refused.

`TABLES` is the whole vocabulary: table -> key -> check. A check takes what TOML gave and returns
the text that goes on a run's command line, or raises `Wrong` with what would be right. Quantities
are written as on that command line, with their unit: `rtt = "20ms"`. Where the product or the test
bed reads the same quantity, its own parser is the check.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from relocator import config, words
from relocator.errors import ConfigError
from testbed import systems
from testbed.network import wan
from testbed.workloads import suite

SYSTEMS = tuple(systems.SYSTEMS)
WORKLOADS = tuple(name for name in suite.WORKLOADS if name != "fio")  # which needs a job file
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.%+_-]*")
NAME_RIGHT = "letters, digits and . % + _ - only: it becomes part of a directory's name"

Check = Callable[[Any], str]


class Wrong(ValueError):
    """A value that can't be; the message is what would be right."""


class ScenarioError(ValueError):
    """A file that can't be used: names file, key and value, and says what would be right."""

    def __init__(self, file: Path, key: str, value: object, right: str) -> None:
        shown = f" = {value!r}" if value is not None else ""
        super().__init__(f"{file}: {key}{shown}: {right}")


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? known: ...`, the suggestion only if there is a near one."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, 1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}known: {', '.join(names)}"


def _text(parse: Callable[[str, str], Any], right: str, numbers: Callable[[int], bool]) -> Check:
    """What `parse` takes, given as text, or as a whole number if `numbers` allows that one."""

    def check(value: Any) -> str:
        number = isinstance(value, int) and not isinstance(value, bool) and numbers(value)
        text = str(value) if number else value
        if not isinstance(text, str):
            raise Wrong(right)
        try:
            parse("", text)
        except (wan.ProfileError, ConfigError) as error:
            raise Wrong(str(error).partition(": ")[2] or str(error)) from error
        return text

    return check


def _quantity(parse: Callable[[str, str], Any], example: str) -> Check:
    right = f"give it with its unit, as text: {example!r}"
    return _text(parse, right, lambda number: number == 0)


def _setting(parse: Callable[[str, str], Any]) -> Check:
    return _text(parse, "give it as text, as on relocator's command line", lambda _: True)


def _choice(*known: str) -> Check:
    def check(value: Any) -> str:
        if value not in known:
            raise Wrong(nearest(str(value), known))
        return str(value)

    return check


def _or_auto(check: Check) -> Check:
    return lambda value: "auto" if value == "auto" else check(value)


def _count(what: str = "") -> Check:
    def check(value: Any) -> str:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise Wrong(f"give a whole number{what}, at least 1")
        return str(value)

    return check


def _workloads(value: Any) -> str:
    if not isinstance(value, list) or not value:
        raise Wrong('give a list, such as ["mixed", "compile"]')
    for word in value:
        path = str(word).removeprefix("fio:")
        if path == str(word) and word not in WORKLOADS:
            raise Wrong(f"{word!r}: {nearest(str(word), [*WORKLOADS, 'fio:PATH'])}")
        if path != str(word) and not re.fullmatch(r"[\w./-]+\.fio", path):
            raise Wrong(f"{word!r}: give a job file such as 'fio:experiments/fio/zipf.fio'")
    return ",".join(value)


def sentence(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise Wrong("give a sentence")
    return value


def name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise Wrong(NAME_RIGHT)
    return value


_TIME = _quantity(wan.parse_time_s, "20ms")
_RATE = _quantity(wan.parse_rate_bits_per_s, "100mbit")
_SIZE = _quantity(wan.parse_size_bytes, "64M")
_FRACTION = _quantity(wan.parse_fraction, "0.1%")

LINK: Mapping[str, Check] = {
    "rtt": _TIME,
    "rate": _RATE,
    "loss": _FRACTION,
    "jitter": _TIME,
    "queue": _or_auto(_SIZE),
    "congestion": _choice("reno", "cubic", "bbr"),
}
PROFILE: Mapping[str, Check] = {"about": sentence, **LINK}
SETTINGS: Mapping[str, Check] = {
    "order": _setting(config.parse_order),
    "readahead": _setting(config.parse_amount),
    "pull-forward": _choice("yes", "no"),
    "skip-free": _choice("yes", "no"),
    "window": _setting(config.parse_window),
    "connections": _setting(config.parse_connections),
    "demand": _choice("own", "shared"),
    "rate": _setting(words.rate),
    "block": _setting(config.parse_block),
    "source": _choice("file"),
    "activate-on-write": _choice("yes"),
    "preseed": _choice("yes", "no", "rounds"),
    "return": _choice("yes", "no"),
    "seed": _FRACTION,
    "copy-mode": _choice("background", "write-blocking"),  # of the mirror
}


def settings_of(system: str) -> list[str]:
    """The settings that a system has, in the order in which they are said."""
    return [key for key in SETTINGS if key in systems.SYSTEMS[system].keys]


#: What relocator does by itself: it isn't said, so that equal runs have equal command lines.
USUAL = {"window": "auto", "pull-forward": "yes"}
#: The tables whose keys are options of the command line, under the same names unless OPTION says.
TABLES: Mapping[str, Mapping[str, Check]] = {
    "network": {"profile": name, **LINK},
    "disk": {
        "size": _SIZE,
        "fill": _SIZE,
        "deleted": _SIZE,
        "file-system": _choice("ext2", "ext3", "ext4"),
        "partition": _choice("none", "mbr", "gpt"),
    },
    "workload": {
        "guest": _choice("dm", "qemu"),
        "workloads": _workloads,
        "read-iops": _count(),
        "write-iops": _count(),
        "ledger-iops": _count(),
        "compile-period": _TIME,
    },
    "timing": {
        "memory": _SIZE,
        "switch-at": _TIME,
        "background": _choice("on", "off"),
        "background-delay": _TIME,
        "duration": _TIME,
        "tail": _TIME,
    },
    "run": {
        "clock": _choice("virtual", "real"),
        "tolerance": _FRACTION,
        "timeout": _count(" of seconds"),  # on the wall clock
        "seeds": _count(),
    },
    "settings": SETTINGS,
}
OPTION = {("disk", "size"): "disk"}
EVENTS: Mapping[str, Check] = {"cut": _TIME, "rate": _RATE, "rtt": _TIME, "loss": _FRACTION}


def event(value: Any) -> str:
    """`{at = "4s", cut = "3s"}` as the command line's `4s:cut:3s`; `at` is after the switch."""
    if not isinstance(value, dict) or "at" not in value or len(value) != 2:
        raise Wrong(f'give a time and one of {", ".join(EVENTS)}: {{at = "4s", cut = "3s"}}')
    kind, what = next((key, item) for key, item in value.items() if key != "at")
    if kind not in EVENTS:
        raise Wrong(f"{kind!r}: {nearest(kind, EVENTS)}")
    try:
        return f"{_TIME(value['at'])}:{kind}:{EVENTS[kind](what)}"
    except Wrong as wrong:
        raise Wrong(f"{wrong} (in {value})") from wrong


def events(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise Wrong('give a list of tables, such as [{at = "4s", cut = "3s"}]')
    return [event(item) for item in value]
