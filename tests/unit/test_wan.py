"""The link profile: parsing, validation and what is derived from it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.network.wan import (
    FRAME_BYTES,
    MINIMUM_QUEUE_BYTES,
    TCP_HEADER_FACTOR,
    LinkProfile,
    ProfileError,
    netem_settings,
    parse_fraction,
    parse_rate_bits_per_s,
    parse_size_bytes,
    parse_time_s,
)


def test_parsing_knows_the_usual_units() -> None:
    assert parse_time_s("rtt", "20ms") == pytest.approx(0.02)
    assert parse_time_s("rtt", "1.5s") == 1.5
    assert parse_time_s("rtt", "0") == 0
    assert parse_rate_bits_per_s("rate", "100mbit") == 100_000_000
    assert parse_rate_bits_per_s("rate", "1Gbit") == 10**9
    assert parse_fraction("loss", "0.1%") == pytest.approx(0.001)
    assert parse_size_bytes("disk", "128M") == 128 * 2**20


@pytest.mark.parametrize("text", ["20", "ms", "-3ms", "20 furlongs", "", "1e3ms", "nan"])
def test_a_bad_time_names_parameter_value_and_what_is_right(text: str) -> None:
    with pytest.raises(ProfileError) as caught:
        parse_time_s("rtt", text)
    assert str(caught.value).startswith(f"rtt={text!r}: ")
    assert "20ms" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"rtt_s": 11.0}, "rtt"),
        ({"rate_bits_per_s": 0}, "rate"),
        ({"loss": 1.0}, "loss"),
        ({"jitter_s": 0.02}, "jitter"),
        ({"queue_bytes": 100}, "queue"),
        ({"congestion": "vegas"}, "congestion"),
    ],
)
def test_an_impossible_profile_is_refused_by_name(change: dict[str, object], name: str) -> None:
    with pytest.raises(ProfileError, match=f"^{name}="):
        LinkProfile(**{"rtt_s": 0.02, "rate_bits_per_s": 10**8} | change)  # type: ignore[arg-type]


def test_the_limit_of_a_known_link() -> None:
    profile = LinkProfile(rtt_s=0.02, rate_bits_per_s=10**8)
    assert profile.bandwidth_delay_bytes == 250_000
    assert profile.standing_queue_bytes == 250_000
    assert profile.limit_packets == -(-375_000 // FRAME_BYTES)
    assert netem_settings(profile) == {"delay": 10_000, "limit": 248, "rate": 12_500_000}


def test_a_link_without_delay_still_has_a_queue() -> None:
    profile = LinkProfile(rtt_s=0, rate_bits_per_s=10**7)
    assert profile.standing_queue_bytes == MINIMUM_QUEUE_BYTES
    assert profile.limit_packets == 100


def test_a_full_segment_carries_1448_of_1514_bytes() -> None:
    assert pytest.approx(1448 / 1514) == TCP_HEADER_FACTOR


@given(
    rtt_s=st.floats(0, 2),
    rate=st.integers(10_000, 10**11),
    jitter=st.floats(0, 1),
    queue=st.none() | st.integers(FRAME_BYTES, 10**9),
)
def test_the_limit_always_holds_delay_line_and_queue(
    rtt_s: float, rate: int, jitter: float, queue: int | None
) -> None:
    profile = LinkProfile(rtt_s, rate, jitter_s=jitter * rtt_s / 2, queue_bytes=queue)
    room_bytes = profile.limit_packets * FRAME_BYTES
    assert room_bytes >= rate / 8 * rtt_s / 2 + profile.standing_queue_bytes - 1
    assert netem_settings(profile)["limit"] >= 1
