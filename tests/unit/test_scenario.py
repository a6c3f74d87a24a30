"""Scenarios are checked before anything runs: an error names file, key, value and what is right."""

from pathlib import Path

import pytest

from experiments.scenarios import scenario
from experiments.scenarios.schema import ScenarioError

GOOD = """
title = "T"
about = "A"
[[systems]]
name = "ours"
system = "relocator"
[[systems]]
name = "remote"
"""


def load(tmp_path: Path, text: str, quick: bool = False) -> scenario.Scenario | None:
    path = tmp_path / "some.toml"
    path.write_text(text)
    return scenario.load(path, quick)


def table(text: str) -> str:
    return GOOD + text


def system(text: str) -> str:
    return f'title = "T"\nabout = "A"\n[[systems]]\n{text}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [", "file: not TOML"),
        (table("[netwrok]"), "netwrok: unknown key; did you mean 'network'?"),
        (table('[network]\nrrt = "1ms"'), "network.rrt: unknown key; did you mean 'rtt'? known:"),
        (table('[network]\nrtt = "20"'), "network.rtt = '20': give a number and one of s, ms, us"),
        (table("[network]\nrtt = 20"), "network.rtt = 20: give it with its unit, as text: '20ms'"),
        (table('[network]\ncongestion = "vegas"'), "network.congestion = 'vegas': known: bbr,"),
        (table('[disk]\nfile-system = "ext5"'), "disk.file-system = 'ext5': did you mean 'ext"),
        ("disk = 3" + GOOD, "disk = 3: must be a table"),
        (table("[workload]\nread-iops = 0"), "read-iops = 0: give a whole number, at least 1"),
        (table("[workload]\nread-iops = true"), "read-iops = True: give a whole number"),
        (table('[workload]\nworkloads = "git"'), "workloads = 'git': give a list"),
        (table('[workload]\nworkloads = ["gti"]'), "'gti': did you mean 'git'?"),
        (table('[workload]\nworkloads = ["fio:x y"]'), "give a job file such as 'fio:experiments"),
        (table("[run]\nseeds = 0"), "run.seeds = 0: give a whole number, at least 1"),
        (table('[run]\ntimeout = "9s"'), "run.timeout = '9s': give a whole number of seconds"),
        (table('[settings]\nwindow = "1"'), "settings.window = '1': too small"),
        (table('[settings]\norder = "hottest"'), "settings.order = 'hottest': must be one of"),
        (table('[axes]\n"network.rtt" = []'), "axes.network.rtt = []: give a list of values"),
        (table('[axes]\n"network.rt" = ["0"]'), "axes.network.rt: unknown key; did you mean 'rtt'"),
        (table('[axes]\n"net.rtt" = ["0"]'), "axes.net.rtt: unknown key; did you mean 'network"),
        (table('[axes]\n"network.rtt" = ["1"]'), "axes.network.rtt = '1': give a number"),
        (table('[axes]\n"disk.size" = ["1M", "1M"]'), "axes.disk.size = '1M': stands there twice"),
        (table("[axes]\nx = [{}]"), "axes.x.label: letters, digits"),
        (table('[axes]\nx = [{label = "a", "disk.sice" = "1M"}]'), "did you mean 'size'?"),
        (
            table('[axes]\nx = [{label = "a", events = [{at = "1s", cat = "1s"}]}]'),
            "'cat': did you mean 'cut'?",
        ),
        ('events = [{at = "1s"}]' + GOOD, "events = [{'at': '1s'}]: give a time and one of"),
        ('events = [{at = "1", cut = "1s"}]' + GOOD, "give a number and one of"),
        ('title = "T"\nabout = "A"', "systems: give at least one"),
        (system('name = "x"'), "systems[0].system = 'x': known: drbd, mirror,"),
        (system('name = "a/b"\nsystem = "stay"'), "systems[0].name = 'a/b': letters, digits"),
        (system('name = "stay"\nsize = 1'), "systems[0].size: unknown key; known: background,"),
        (system('name = "stay"\nsettings = {rate = "none"}'), "stay has none"),
        (system('name = "relocator"\nsettings = {ordr = "hot"}'), "did you mean 'order'?"),
        (system('name = "relocator"\ntrace-of = "x"'), "must be the name of a system above: none"),
        (system('name = "relocator"\nbackground = "yes"'), "background = 'yes': known: off, on"),
        (GOOD + '[[systems]]\nname = "remote"', "systems[2].name = 'remote': stands there twice"),
        (GOOD.replace('title = "T"', ""), "title: give a sentence"),
        (table('[quick]\nsystems = ["our"]'), "quick.systems = 'our': did you mean 'ours'?"),
        (table('[quick.axes]\n"network.rtt" = ["1s"]'), "quick.axes.network.rtt: unknown key"),
        (table("[quick]\nskipp = true"), "quick.skipp: unknown key; did you mean 'skip'?"),
        (table('[quick.disk]\nsize = "1X"'), "quick.disk.size = '1X': give a number and one of"),
        (
            table('[axes]\nx = [{label = "a"}]\n[quick.axes]\nx = ["b"]'),
            "quick.axes.x = 'b': known: a",
        ),
    ],
)
def test_an_error_names_file_key_value_and_what_is_right(
    text: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ScenarioError) as caught:
        load(tmp_path, text, quick=True)
    assert str(caught.value).startswith(str(tmp_path / "some.toml"))
    assert message in str(caught.value)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"no\.toml: file: No such file"):
        scenario.load(tmp_path / "no.toml")
    with pytest.raises(ScenarioError, match="there is no scenario"):
        scenario.load_all(directory=tmp_path)


def test_a_profile_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "moon.toml"
    path.write_text('about = "far"\nrtt = "2.5s"')
    with pytest.raises(ScenarioError, match=r"moon\.toml: rate: missing"):
        scenario.profiles({"moon": path})
    path.write_text('about = "far"\nrtt = "2.5s"\nrate = "1mbit"\nlos = "1%"')
    with pytest.raises(ScenarioError, match=r"moon\.toml: los: unknown key; did you mean 'loss'"):
        scenario.profiles({"moon": path})


def test_the_library_has_the_links_that_are_promised() -> None:
    names = {"lan", "metro", "national", "transpacific", "mobile", "satellite"}
    assert names | {"hpc116-e1", "hpc116-e2"} <= set(scenario.profiles())


def test_the_later_wins(tmp_path: Path) -> None:
    text = GOOD + '[disk]\nsize = "7M"\nfill = "3M"\n[quick.disk]\nsize = "5M"'
    full, quick = load(tmp_path, text), load(tmp_path, text, quick=True)
    assert full is not None and quick is not None
    assert (full.values["disk.size"], full.values["disk.fill"]) == ("7M", "3M")
    assert (quick.values["disk.size"], quick.values["disk.fill"]) == ("5M", "3M")
    assert full.values["timing.duration"] != quick.values["timing.duration"]  # base's quick


def test_quick_mode_takes_fewer_systems_and_values_or_none(tmp_path: Path) -> None:
    axes = '[axes]\n"network.rtt" = ["1ms", "2ms"]\nx = [{label = "a"}, {label = "b"}]\n'
    quick = '[quick]\nsystems = ["remote"]\n[quick.axes]\n"network.rtt" = ["3ms"]\nx = ["b"]'
    one = load(tmp_path, GOOD + axes + quick, quick=True)
    assert one is not None
    assert [system.name for system in one.systems] == ["remote"]
    assert [[v.label for v in axis.variants] for axis in one.axes] == [["3ms"], ["b"]]
    assert load(tmp_path, GOOD + "[quick]\nskip = true", quick=True) is None
    assert load(tmp_path, GOOD + "[quick]\nskip = true") is not None
