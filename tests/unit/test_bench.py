"""What the benchmark computes from what it measured."""

import json

import pytest

from experiments.bench import load, tables, wan
from testbed.hosts import usage

FIO = {
    "jobs": [
        {
            "error": 0,
            "read": {
                "iops": 1000.5,
                "total_ios": 500,
                "clat_ns": {"percentile": {"50.000000": 1e6, "99.000000": 4e6}},
            },
        }
    ]
}


def test_fio_is_read_past_its_remarks() -> None:
    figure = load.parse("fio: connected to NBD server\n" + json.dumps(FIO), load.LOADS[0])
    assert figure == load.Figure(1000.5, 0.001, 0.004)


def test_a_job_that_did_nothing_is_an_error() -> None:
    FIO_NONE = json.loads(json.dumps(FIO))
    FIO_NONE["jobs"][0]["read"]["total_ios"] = 0
    with pytest.raises(ValueError, match="0 requests"):
        load.parse(json.dumps(FIO_NONE), load.LOADS[0])


def test_the_direction_follows_the_pattern() -> None:
    assert {one.direction for one in load.LOADS if "write" in one.name} == {"write"}
    assert {one.direction for one in load.LOADS if "read" in one.name} == {"read"}


def test_the_spread_is_half_the_range_over_the_median() -> None:
    assert tables.summarise([8.0, 10.0, 12.0]) == {"median": 10.0, "spread": 0.2}


def test_a_ratio_is_to_the_reference_of_the_same_round() -> None:
    assert tables.ratio([5.0, 40.0, 9.0], [10.0, 100.0, 10.0]) == 0.5


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0.5, 50.0), (0.99, 99.0), (0.999, 100.0), (0.0, 1.0)]
)
def test_a_quantile_is_the_nearest_rank(fraction: float, expected: float) -> None:
    assert tables.quantile([float(one) for one in range(100, 0, -1)], fraction) == expected


def test_nothing_has_no_quantile() -> None:
    assert tables.quantile([], 0.5) is None


def test_memory_is_read_from_what_the_kernel_says_of_a_process() -> None:
    status = "Name:\tnbdkit\nVmHWM:\t  204800 kB\nVmRSS:\t  102400 kB\nRssAnon:\t 51200 kB\n"
    assert usage.parse_memory_kib(status) == {
        "rss": 102400,
        "peak": 204800,
        "anonymous": 51200,
    }


def test_a_table_is_markdown() -> None:
    assert tables.markdown(["a", "b"], [["c", "1"]]) == "| a | b |\n| --- | ---: |\n| c | 1 |\n"


def test_a_read_that_waited_for_the_wan_is_told_by_half_a_round_trip() -> None:
    reads = [[0.0, 0.3], [0.1, 0.001], [0.2, 0.1], [0.3, 0.12]]
    found = wan.summary({"reads": reads, "writes": [[0.0, 0.01], [0.1, 0.002]]}, rtt_s=0.1)
    assert found["absent"] == 2
    assert found["absent_p99_s"] == 0.12
    assert found["first_read_s"] == 0.3
    assert found["write_p99_s"] == 0.002


def test_a_system_without_clients_has_no_latencies() -> None:
    found = wan.summary({"reads": [], "writes": []}, rtt_s=0.1)
    assert found["read_p50_s"] is None
    assert found["first_read_s"] is None
