"""From scenarios to cells: ids that read well, command lines that the test bed understands."""

from pathlib import Path

import pytest

from experiments.running import code, trace
from experiments.scenarios import cells, scenario
from experiments.scenarios.cells import Cell
from experiments.scenarios.schema import ScenarioError
from testbed.migration import disk, options
from testbed.workloads import suite

EXPECTED = {
    *("e1", "e2", "e4", "e7", "e8", "compare", "ordering", "pacing", "outage", "congestion"),
    *("size", "profiles", "loads", "clocks", "real", "guest"),
}


def expand(tmp_path: Path, text: str, seeds: int | None = None) -> list[Cell]:
    path = tmp_path / "some.toml"
    path.write_text(f'title = "T"\nabout = "A"\n{text}')
    one = scenario.load(path, True)
    assert one is not None
    return cells.expand([one], seeds)


def value(cell: Cell, option: str) -> str:
    return cell.arguments[cell.arguments.index(option) + 1]


@pytest.mark.parametrize("quick", [True, False])
def test_every_cell_of_every_scenario_is_a_command_the_test_bed_understands(quick: bool) -> None:
    found = cells.quick_or_full(quick)
    assert {cell.scenario for cell in found} == EXPECTED
    assert len({cell.id for cell in found}) == len(found)
    assert found == cells.quick_or_full(quick)
    for cell in found:
        parameters = options.parse(cell.arguments)
        workloads = suite.parse(parameters.workloads, suite.Settings())
        wanted = disk.Wanted(parameters.disk_bytes, parameters.fill_bytes)
        wanted.check(suite.room(workloads))  # the disk has room for them


def test_the_quick_matrix_is_small_and_has_repetitions() -> None:
    found = [cell for cell in cells.quick_or_full(True) if cell.same_as is None]
    assert len(found) <= 57
    assert any(cell.seed > 1 for cell in found)
    assert sum(cell.clock == "real" for cell in found) == 1


def test_a_cell_comes_after_those_it_needs() -> None:
    before: set[str] = set()
    for cell in cells.quick_or_full(False):
        assert set(cell.needs) <= before
        before.add(cell.id)


def test_an_id_is_scenario_axes_system_and_seed(tmp_path: Path) -> None:
    text = """
[[systems]]
name = "remote"
[axes]
"network.rtt" = ["1ms", "2ms"]
event = [{label = "cut", events = [{at = "2s", cut = "1s"}]}, {label = "none"}]
"""
    found = expand(tmp_path, text, seeds=2)
    assert len(found) == 8
    assert found[0].id == "some/rtt=1ms,event=cut/remote/s1"
    assert found[-1].id == "some/rtt=2ms,event=none/remote/s2"
    assert value(found[0], "--event") == "2s:cut:1s"
    assert "--event" not in found[-1].arguments
    assert found[-1].axes == {"rtt": "2ms", "event": "none"}
    command = found[-1].command("python", "RUN")
    assert command[command.index("--seed") + 1] == "2"
    assert value(found[-1], "--seed") == "2"


def test_the_same_run_is_not_made_twice(tmp_path: Path) -> None:
    text = """
[[systems]]
name = "a"
system = "relocator"
[[systems]]
name = "b"
system = "relocator"
settings = {window = "auto"}
[[systems]]
name = "oracle-a"
system = "relocator"
trace-of = "a"
[[systems]]
name = "oracle-b"
system = "relocator"
trace-of = "b"
"""
    a, b, first, second = expand(tmp_path, text)
    assert (a.same_as, b.same_as) == (None, a.id)  # auto is what it does anyway
    assert first.needs == [a.id]
    assert second.needs == [first.id]
    assert value(first, "--set") == "order=trace:oracle.trace"
    assert "--file" in first.command("python", "RUN")


def test_own_keys_of_the_network_win_over_its_profile(tmp_path: Path) -> None:
    text = """
[network]
loss = "0"
[[systems]]
name = "remote"
[axes]
"network.profile" = ["mobile"]
"""
    (cell,) = expand(tmp_path, text)
    assert (value(cell, "--rtt"), value(cell, "--loss")) == ("50ms", "0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[network]\nprofile = "mobil"', "network.profile = 'mobil': did you mean 'mobile'?"),
        ('[network]\njitter = "15ms"', "network.jitter = '15ms': jitter is 0 to half the RTT"),
        ('[disk]\nsize = "1M"\n[quick.disk]\nsize = "24M"', "disk.fill = '24M': must be below"),
        ('[timing]\nswitch-at = "99s"', "timing.switch-at = '99s': must be before 14s"),
    ],
)
def test_what_does_not_go_together_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError) as caught:
        expand(tmp_path, f'{text}\n[[systems]]\nname = "remote"')
    assert message in str(caught.value)


def test_cells_travel_as_a_file(tmp_path: Path) -> None:
    found = cells.quick_or_full(True)
    cells.write(tmp_path / "matrix.json", found)
    assert cells.read(tmp_path / "matrix.json") == found


# --- the oracle's order, and the code's version


def test_a_trace_has_what_is_needed_from_the_source_in_order_of_need(tmp_path: Path) -> None:
    (tmp_path / "requests.csv").write_text(
        "t_s,kind,offset_bytes,length_bytes\n"
        "0.5,read,40960,4096\n"  # at the source
        "9.0,read,0,4096\n"
        "1.0,read,8192,8192\n"  # blocks 2 and 3
        "2.0,write,16384,4096\n"  # whole: never needed
        "3.0,read,16384,4096\n"
        "4.0,write,20480,512\n"  # a part: needed
        "5.0,read,8192,4096\n"
    )
    (tmp_path / "run.json").write_text('{"summary": {"switch_s": 0.9}}')
    trace.write(tmp_path, tmp_path / "trace")
    lines = (tmp_path / "trace").read_text().split()
    assert lines == ["8192,4096", "12288,4096", "20480,4096", "0,4096"]


def test_a_trace_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "requests.csv").write_text("t_s,kind\n")
    (tmp_path / "run.json").write_text('{"summary": {"switch_s": 0.9}}')
    with pytest.raises(ValueError, match="columns are missing: offset_bytes, length_bytes"):
        trace.write(tmp_path, tmp_path / "trace")


def test_a_guest_that_never_moved_gives_no_trace(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"summary": {"switch_s": null}}')
    with pytest.raises(ValueError, match="did not move"):
        trace.write(tmp_path, tmp_path / "trace")


def test_a_run_is_of_the_product_and_the_test_bed_not_of_the_figures(tmp_path: Path) -> None:
    for name in ("relocator/a.py", "testbed/b.py", "experiments/fio/c.fio", "experiments/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    first = code.version(tmp_path)
    (tmp_path / "experiments/d.py").write_text("another figure")
    second = code.version(tmp_path)
    (tmp_path / "experiments/fio/c.fio").write_text("another load")
    third = code.version(tmp_path)
    assert first["run"] == second["run"] != third["run"]
    assert len({first["tree"], second["tree"], third["tree"]}) == 3
    assert first["describe"] == "unknown"
