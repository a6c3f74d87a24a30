"""Content that is at the destination already is not sent: `seed=PATH,...`."""

import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from relocator.copying.seeds import Seed
from tests.support.model import Actor, source_bytes
from tests.support.servers import Server, mistaken, nbdkit, plugin, proxy, refused, wait_for
from tests.support.sources import Relay

SIZE_BYTES = (24 << 20) + 5 * 512  # the last unit of any size is a short one
UNIT_BYTES = 256 << 10
PIECE_BYTES = 4096
#: gives a silent source up after a second, and a question, too
IMPATIENT = """
from relocator.source import connection as _connection, digests as _digests
_connection.STALL_S = _digests.PATIENCE_S = 1.0
"""
#: a source that has no digests
OLDER = "from relocator.source import digests as _digests\n_digests.unit_of = lambda _name: None\n"


@contextmanager
def source_of(directory: Path, content: bytes, *keys: str, **more: Any) -> Iterator[Server]:
    """Our target with that content."""
    path = directory / "disk.img"
    path.write_bytes(content)
    with plugin(directory, "target", f"disk={path}", *keys, **more) as server:
        yield server


def changed(content: bytes, share: float, seed: int = 3) -> bytearray:
    """A share of its pieces of 4 KiB is another, here and there."""
    choose = random.Random(seed)
    made = bytearray(content)
    pieces = range(0, len(content), PIECE_BYTES)
    for at in choose.sample(pieces, int(len(pieces) * share)):
        length = len(made[at : at + PIECE_BYTES])
        made[at : at + length] = choose.randbytes(length)
    return made


def seed_of(directory: Path, content: bytes, name: str = "template.img") -> str:
    (directory / name).write_bytes(content)
    return f"seed={directory / name}"


def image(directory: Path) -> bytes:
    return (directory / "store" / "disk.img").read_bytes()


@contextmanager
def counted(source: Server) -> Iterator[tuple[str, Relay]]:
    """The source behind a relay that counts; its URI there."""
    relay = Relay(source.socket)
    try:
        yield f"nbd://127.0.0.1:{relay.port}", relay
    finally:
        relay.close()


def test_a_disk_made_from_the_template_costs_what_was_changed(tmp_path: Path) -> None:
    """All that crosses the link is counted, both ways: blocks, digests, requests, and the rest."""
    template = random.Random(1).randbytes(SIZE_BYTES)
    disk = bytes(changed(template, 0.05))
    with source_of(tmp_path, disk) as source, counted(source) as (uri, relay):
        with proxy(tmp_path, uri, seed_of(tmp_path, template)) as server:
            status = server.wait()
    assert image(tmp_path) == disk
    share = relay.passed_bytes / SIZE_BYTES
    digests = status["digest_bytes"] / SIZE_BYTES
    print(f"5 % changed: {share:.2%} of the disk crossed the link, {digests:.2%} were digests")
    assert share <= 0.08


@pytest.mark.parametrize("block_bytes", [512, 4096, 1 << 16, 1 << 20])
def test_what_a_seed_has_is_not_fetched(tmp_path: Path, block_bytes: int) -> None:
    template = random.Random(1).randbytes(SIZE_BYTES)
    disk = bytes(changed(template, 0.002))
    with source_of(tmp_path, disk) as source:
        seed = seed_of(tmp_path, template)
        with proxy(tmp_path, source, seed, f"block={block_bytes}") as server:
            status = server.wait()
            assert image(tmp_path) == disk
    assert status["seeded_bytes"] + status["background_bytes"] == SIZE_BYTES
    least = 13 * max(block_bytes, PIECE_BYTES)  # so many pieces differ, each in a block of its own
    assert status["background_bytes"] <= least
    assert status["seeding"] == "over"
    assert 0 < status["digest_bytes"] < SIZE_BYTES / PIECE_BYTES * 32


@pytest.mark.parametrize("block_bytes", [4096, 1 << 18])
def test_what_a_seed_has_elsewhere_is_not_fetched(tmp_path: Path, block_bytes: int) -> None:
    """The link is slow, so that there is time to read the seeds before most of it is fetched."""
    template = random.Random(1).randbytes(SIZE_BYTES // UNIT_BYTES * UNIT_BYTES)
    half, shift = len(template) // 2 // UNIT_BYTES * UNIT_BYTES, 3 * block_bytes
    disk = template[half:] + random.Random(2).randbytes(shift) + template[:half]
    seeds = f"{seed_of(tmp_path, bytes(512))},{tmp_path / 'template.img'}"
    seeds = seeds.replace("template.img,", "short.img,")
    (tmp_path / "template.img").rename(tmp_path / "short.img")
    (tmp_path / "template.img").write_bytes(template)
    with source_of(tmp_path, disk) as source:
        with proxy(tmp_path, source, seeds, f"block={block_bytes}", "rate=8M") as server:
            status = server.wait()
    assert image(tmp_path) == disk
    assert status["seeded_bytes"] + status["background_bytes"] == len(disk)
    assert shift <= status["background_bytes"] < shift + (4 << 20)


def test_zeros_that_are_no_hole_are_not_fetched(tmp_path: Path) -> None:
    disk = bytes(random.Random(1).randbytes(1 << 20) + bytes(8 << 20))
    with source_of(tmp_path, disk) as source:
        with proxy(tmp_path, source, seed_of(tmp_path, b"")) as server:
            status = server.wait()
    assert image(tmp_path) == disk
    assert status["background_bytes"] == 1 << 20
    assert (tmp_path / "store" / "disk.img").stat().st_blocks * 512 < 2 << 20


def arbitrary_seed(directory: Path, disk: bytes, number: int, choose: random.Random) -> str:
    """The path of an image that has something to do with the disk, or nothing."""
    kind = choose.choice(("changed", "shifted", "short", "long", "noise", "zeros", "empty"))
    shift = choose.choice((1, 512, 4096, UNIT_BYTES, 3 * 4096))
    made = {
        "changed": lambda: bytes(changed(disk, choose.choice((0.001, 0.3)), number)),
        "shifted": lambda: disk[shift:] + disk[:shift],
        "short": lambda: disk[: choose.randrange(len(disk))],
        "long": lambda: disk + choose.randbytes(9999),
        "noise": lambda: choose.randbytes(1 << 20) * 3,
        "zeros": lambda: bytes(len(disk)),
        "empty": lambda: b"",
    }
    path = directory / f"seed-{number}.img"
    path.write_bytes(made[kind]())
    return str(path)


@pytest.mark.parametrize("number", range(4))
def test_with_whatever_seeds_the_copy_is_the_disk(tmp_path: Path, number: int) -> None:
    """Beside guests that read and write all over it, through a kill, with blocks of any size."""
    choose = random.Random(number)
    size = (5 << 20) + 512 * choose.randrange(9)
    disk = bytes(source_bytes(size, seed=number))
    paths = [arbitrary_seed(tmp_path, disk, at, choose) for at in range(choose.randrange(1, 4))]
    block_bytes = choose.choice((512, 4096, 1 << 17))
    keys = [f"seed={','.join(paths)}", f"block={block_bytes}"]
    with source_of(tmp_path, disk) as source:
        model = bytearray(disk)
        with proxy(tmp_path, source, *keys, "rate=20M", "seed-rate=50M") as server:
            actor = Actor(server.connect(), model, 0, size, number, block_bytes=block_bytes)
            for _ in range(60):
                actor.step()
            server.connect().flush()
            server.kill()
        with proxy(tmp_path, source, *keys) as server:
            if server.status()["seeding"] == "off":  # complete already: no block is trimmed in part
                block_bytes = 1
            actor = Actor(server.connect(), model, 0, size, number + 100, block_bytes=block_bytes)
            for _ in range(40):
                actor.step()
            status = server.wait()
            actor.check_all()
    assert status["error"] is None
    assert image(tmp_path) == model


def test_a_seed_that_changes_meanwhile_does_no_harm(tmp_path: Path) -> None:
    disk = random.Random(1).randbytes(SIZE_BYTES)
    stop = threading.Event()

    def scribble() -> None:
        choose = random.Random(2)
        with (tmp_path / "template.img").open("r+b", buffering=0) as file:
            while not stop.is_set():
                at = choose.randrange(SIZE_BYTES - 9000)
                file.seek(at)
                file.write(choose.choice((choose.randbytes(9000), disk[at : at + 9000])))

    with source_of(tmp_path, disk) as source:
        seed = seed_of(tmp_path, disk)
        scribbler = threading.Thread(target=scribble)
        scribbler.start()
        try:
            with proxy(tmp_path, source, seed) as server:
                status = server.wait()
        finally:
            stop.set()
            scribbler.join()
    assert image(tmp_path) == disk
    assert status["seeded_bytes"] > 0
    assert status["seeded_bytes"] + status["background_bytes"] == SIZE_BYTES


def test_what_was_copied_ahead_from_a_seed_and_written_since_is_fetched(tmp_path: Path) -> None:
    template = random.Random(1).randbytes(SIZE_BYTES)
    disk = changed(template, 0.01)
    with source_of(tmp_path, bytes(disk)) as source:
        with proxy(tmp_path, source, seed_of(tmp_path, template), "mode=standby") as server:
            blocks = server.status()["total_blocks"]
            wait_for(lambda: server.status()["present_blocks"] == blocks, "the pre-seed")
            ahead = server.status()
            guest = source.connect()
            for at in (5 * UNIT_BYTES, 70 * UNIT_BYTES + 8192):
                guest.pwrite(b"w" * 4096, at)
                disk[at : at + 4096] = b"w" * 4096
            server.control.call("activate", wait=True)
            status = server.wait()
            assert image(tmp_path) == disk
    assert status["dropped_blocks"] == 2
    assert status["seeded_bytes"] == ahead["seeded_bytes"] > 0.9 * SIZE_BYTES


def test_the_switch_in_the_middle_of_comparing(tmp_path: Path) -> None:
    """What the source was asked before it stood still is asked again."""
    template = random.Random(1).randbytes(SIZE_BYTES)
    disk = changed(template, 0.01)
    with source_of(tmp_path, bytes(disk)) as source:
        keys = ("mode=standby", "seed-rate=80M")
        with proxy(tmp_path, source, seed_of(tmp_path, template), *keys) as server:
            wait_for(lambda: server.status()["seeded_bytes"] > 0, "something taken")
            guest = source.connect()
            for at in range(0, SIZE_BYTES - 4096, UNIT_BYTES):
                guest.pwrite(template[:4096], at)
                disk[at : at + 4096] = template[:4096]
            server.control.call("activate", wait=True)
            status = server.wait()
            assert image(tmp_path) == disk
            assert server.control.call("verify")["verified_blocks"] == status["total_blocks"]


def test_after_a_restart_only_what_is_absent_is_compared(tmp_path: Path) -> None:
    disk = random.Random(1).randbytes(SIZE_BYTES)
    seed = seed_of(tmp_path, disk)
    with source_of(tmp_path, disk) as source:
        with proxy(tmp_path, source, seed, "seed-rate=100M") as server:
            wait_for(lambda: server.status()["seeded_bytes"] > SIZE_BYTES / 3, "a third")
        with proxy(tmp_path, source, seed) as server:
            status = server.wait()
    assert image(tmp_path) == disk
    assert status["seeded_bytes"] + status["background_bytes"] < SIZE_BYTES * 2 / 3
    assert status["digested_bytes"] < SIZE_BYTES * 2 / 3 + UNIT_BYTES


def test_a_guest_does_not_wait_for_digests(tmp_path: Path) -> None:
    """They come at a snail's pace; what it reads is fetched as ever."""
    disk = bytes(source_bytes(SIZE_BYTES))
    with source_of(tmp_path, disk) as source:
        with proxy(tmp_path, source, seed_of(tmp_path, disk), "seed-rate=1K") as server:
            guest = server.connect()
            for at in range(0, SIZE_BYTES - 4096, 1 << 20):
                assert guest.pread(4096, at) == disk[at : at + 4096]
            status = server.status()
    assert status["on_demand_bytes"] > 0
    assert status["digested_bytes"] <= 16 * UNIT_BYTES
    assert (status["seeding"], status["state"]) == ("on", "active")


@pytest.mark.parametrize("serve", [["file"], ["--filter=noextents", "file"]])
def test_a_source_that_gives_no_digests_is_copied(tmp_path: Path, serve: list[str]) -> None:
    disk = bytes(source_bytes(2 << 20))
    (tmp_path / "disk.img").write_bytes(disk)
    with nbdkit(tmp_path, "source", [*serve, str(tmp_path / "disk.img")]) as source:
        with proxy(tmp_path, source, seed_of(tmp_path, disk)) as server:
            status = server.wait()
    assert image(tmp_path) == disk
    assert status["notes"][-1] == "seed: not used: the source is not a relocator"
    assert (status["seeded_bytes"], status["digest_bytes"]) == (0, 0)


def test_a_source_of_ours_that_gives_no_digests_is_copied(tmp_path: Path) -> None:
    disk = bytes(source_bytes(2 << 20))
    older = mistaken(tmp_path, OLDER)
    with source_of(tmp_path, disk, file=older) as source:
        (tmp_path / "impatient").mkdir()
        impatient = mistaken(tmp_path / "impatient", IMPATIENT)
        with proxy(tmp_path, source, seed_of(tmp_path, disk), file=impatient) as server:
            status = server.wait()
    assert image(tmp_path) == disk
    assert status["notes"][-1] == "seed: not used: the source gives no digests"
    assert (status["seeded_bytes"], status["background_bytes"]) == (0, len(disk))


def test_a_source_that_is_silent_for_a_while_gives_digests_again(tmp_path: Path) -> None:
    """Nobody else notices: while all of it matches, the copy's own connections are idle."""
    disk = random.Random(1).randbytes(SIZE_BYTES)
    keys = (seed_of(tmp_path, disk), "seed-rate=40M")
    impatient = mistaken(tmp_path, IMPATIENT)
    with source_of(tmp_path, disk) as source:
        with proxy(tmp_path, source, *keys, file=impatient) as server:
            wait_for(lambda: server.status()["seeded_bytes"], "something taken")
            source.process.send_signal(signal.SIGSTOP)
            try:
                wait_for(lambda: judged(server), "what is made of it")
            finally:
                source.process.send_signal(signal.SIGCONT)
            status = server.wait()
    assert image(tmp_path) == disk
    assert (status["seeded_bytes"], status["background_bytes"]) == (SIZE_BYTES, 0)
    assert not any("seed:" in note for note in status["notes"])


def judged(server: Server) -> bool:
    """Whether a silent source was asked by another connection, or seeds were given up."""
    status = server.status()
    return status["seeding"] == "over" or not status["source_connected"]


def test_a_seed_that_is_none_is_refused(tmp_path: Path) -> None:
    keys = [f"store={tmp_path / 'store'}", "source=nbd://127.0.0.1:1"]
    assert f"seed={tmp_path}/none: there is no such file" in refused(*keys, f"seed={tmp_path}/none")
    assert f"seed={tmp_path}: there is no such file" in refused(*keys, f"seed={tmp_path}")
    assert "seed=: is empty; give a path" in refused(*keys, "seed=")
    assert "needs store=DIR" in refused(f"disk={tmp_path}/d", f"seed={tmp_path}/none")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "q", "1M"], check=True)
    with source_of(tmp_path, bytes(4096)) as source:
        keys[1] = f"source={source.uri}"
        message = refused(*keys, f"seed={tmp_path / 'q'}")
        assert f"seed={tmp_path / 'q'}: is a qcow2 image; give a raw one" in message
        assert "can't be read: Input/output error" in refused(*keys, "seed=/proc/self/mem")
    assert not (tmp_path / "store").exists()


def test_a_seed_that_fails_is_not_used_any_more(tmp_path: Path) -> None:
    path = tmp_path / "seed.img"
    path.write_bytes(b"s" * 5000)
    seed = Seed(path)
    whole = seed.read(4096, 4096)
    assert whole == b"s" * 904 + bytes(3192)
    seed.close()  # as if its device were gone
    assert seed.read(0, 4096) is None
    assert seed.failure == f"seed={path}: is not used any more: Bad file descriptor"
