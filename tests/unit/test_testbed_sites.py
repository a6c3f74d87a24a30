"""Link counters, calibration's judgement, and the guest's known contents."""

import pytest

from testbed.network.calibrate import Calibration, Tolerance, Train, judge, parse_ping
from testbed.network.topology import INTERFACES, LINKS, read_counters
from testbed.network.wan import UDP_HEADER_FACTOR, LinkProfile
from testbed.workloads import fio, tree
from testbed.workloads.files import incompressible

PROFILE = LinkProfile(rtt_s=0.02, rate_bits_per_s=10**8)


def calibration(rtt_s: float = 0.02, factor: float = 1.0, loss: float = 0.0) -> Calibration:
    expected = PROFILE.rate_bits_per_s * UDP_HEADER_FACTOR
    rates = {"to_destination": expected * factor, "to_source": expected}
    return Calibration(rtt_s, 0.020016, rates, expected, loss, Tolerance())


TRAINS = {"to_destination": [Train(1.0, 1000, 1000)], "to_source": [Train(1.0, 1000, 1000)]}


def test_a_link_as_asked_for_passes() -> None:
    assert judge(PROFILE, calibration(), TRAINS) == []


@pytest.mark.parametrize(
    ("off", "says"),
    [
        (calibration(rtt_s=0.0203), "RTT is 20.300 ms, +0.284 ms off the expected 20.016 ms"),
        (calibration(factor=0.97), "rate to destination is 94.31 Mbit/s of payload, -3.00% off"),
        (calibration(loss=0.01), "loss is 1.000% of 2000 datagrams, expected 0.000%"),
    ],
)
def test_a_link_that_is_off_is_refused_with_figures(off: Calibration, says: str) -> None:
    (problem,) = judge(PROFILE, off, TRAINS)
    assert says in problem


def test_loss_is_judged_by_what_so_many_datagrams_can_show() -> None:
    lossy = LinkProfile(rtt_s=0.02, rate_bits_per_s=10**8, loss=0.01)
    assert judge(lossy, calibration(loss=0.017), TRAINS) == []
    assert judge(lossy, calibration(loss=0.03), TRAINS) != []


def test_ping_s_mean_is_read() -> None:
    text = "20 packets transmitted\nrtt min/avg/max/mdev = 20.014/20.040/20.110/0.020 ms, pipe 2\n"
    assert parse_ping(text) == pytest.approx(0.02004)
    with pytest.raises(ValueError, match="no answer"):
        parse_ping("20 packets transmitted, 0 received, 100% packet loss")


def test_a_host_s_counters_are_its_port_s_exchanged() -> None:
    ports = [interface.port for interface in INTERFACES] + ["src-wan", "dst-wan"]
    table = "Inter-|   Receive\n face |bytes\n" + "".join(
        f"  {port}: {index} 0 0 0 0 0 0 0 {1000 + index} 0 0 0 0 0 0 0\n"
        for index, port in enumerate(ports)
    )
    counters = read_counters(table)
    assert set(counters) == set(LINKS)
    assert counters["A"] == (1000, 0)
    assert counters["wan"] == (len(ports) - 1, 1000 + len(ports) - 1)


def test_names_fit_the_kernel_and_contain_their_bridge_s() -> None:
    assert all(len(one.port) <= 15 and one.site in one.port for one in INTERFACES)
    assert len({one.address for one in INTERFACES}) == len({one.mac for one in INTERFACES}) == 8


def test_contents_repeat_by_seed_and_do_not_compress() -> None:
    import zlib

    once = b"".join(incompressible(1, 3_000_000))
    assert once == b"".join(incompressible(1, 3_000_000))
    assert once != b"".join(incompressible(2, 3_000_000))
    assert len(once) == 3_000_000
    assert len(zlib.compress(once, 6)) > 2_990_000


def test_a_source_tree_repeats_by_seed() -> None:
    assert tree.archive(5) == tree.archive(5)
    assert tree.archive(5) != tree.archive(6)
    files, total = tree.generate(5)
    assert files["EXPECTED"] == f"{total}\n"


def test_fio_s_log_is_read() -> None:
    read, write = fio.parse_log(["1500, 20000000, 0, 4096, 8192, 0", "1501,1000,1,4096,0,0"])
    assert read == fio.Io(1.5, "read", 0.02, 8192)
    assert (write.kind, write.latency_s) == ("write", 1e-6)
