"""The migration's command line."""

import pytest

from testbed.migration import options


def test_defaults_are_the_paper_s_link() -> None:
    parameters = options.parse([])
    assert (parameters.rtt_s, parameters.rate_bits_per_s) == (0.02, 10**8)
    assert parameters.system == "relocator"
    assert set(parameters.results()) >= {"rtt_s", "disk_bytes", "seed", "offload"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rtt", "20"], "rtt='20': give a number and one of s, ms, us: 20ms"),
        (["--rate", "1"], "rate='1': "),
        (["--loss", "100%"], "loss=1.0: "),
        (["--jitter", "50ms"], "jitter=0.05: "),
        (["--switch-at", "30s", "--duration", "30s"], "switch-at=30s: the switch comes before"),
        (["--read-iops", "0"], "read-iops=0: at least one"),
        (["--tolerance", "0"], "tolerance=0.0: "),
        (["--system", "rsync"], "system=rsync: must be one of drbd, mirror"),
        (["--set", "order"], "set=order: give KEY=VALUE"),
        (["--set", "colour=red"], "set=colour=red: relocator takes activate-on-write, block"),
        (["--system", "remote", "--set", "order=hot"], "set=order=hot: remote takes nothing"),
        (["--event", "5s:flood:1s"], "5s:flood:1s"),
        (["--congestion", "vegas"], "congestion='vegas': "),
        (["--workloads", "mixed,dance"], "workloads='dance'"),
    ],
)
def test_a_wrong_parameter_is_named_with_its_value(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        options.parse(arguments)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def test_the_memory_copy_is_started_so_that_it_ends_at_the_switch() -> None:
    parameters = options.parse(["--memory", "10M", "--rate", "100mbit", "--rtt", "0"])
    assert 10 * 2**20 * 8 / 1e8 < parameters.memory_copy_s < 1.0
