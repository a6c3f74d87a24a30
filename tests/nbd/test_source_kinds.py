"""The source may be any NBD server: each is killed and started again in the middle of the copy."""

import os
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.model import Actor, source_bytes
from tests.support.servers import PLUGIN, plugin, wait_for
from tests.support.sources import SIZE_BYTES, Relay, daemon, image, sparse

PATIENCE_S = 120.0


def run(argv: list[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"


def nbdkit(port: int, *arguments: str) -> list[str]:
    """With one thread: 1.32 may abort when a client leaves while several threads owe replies."""
    return ["nbdkit", "-t", "1", "-f", "-i", "127.0.0.1", "-p", str(port), *arguments]


def our_target(directory: Path, port: int) -> list[str]:
    """With maps in memory: a restart makes it forget its id and its seal."""
    return nbdkit(port, "python", str(PLUGIN), f"disk={image(directory)}")


def our_target_with_store(directory: Path, port: int) -> list[str]:
    maps = f"store={directory / 'source-maps'}"
    return nbdkit(port, "python", str(PLUGIN), f"disk={image(directory)}", maps)


def nbdkit_file(directory: Path, port: int) -> list[str]:
    path = sparse(bytes(source_bytes(SIZE_BYTES)), directory / "disk.img")
    return nbdkit(port, "file", str(path))


def nbdkit_memory(directory: Path, port: int) -> list[str]:
    """Filled at each start, so that it holds the same after a restart."""
    return nbdkit(port, "data", f"data=<{image(directory)}")


def nbdkit_oldstyle(directory: Path, port: int) -> list[str]:
    return nbdkit(port, "--oldstyle", "file", str(image(directory)))


def nbdkit_without_structured_replies(directory: Path, port: int) -> list[str]:
    return nbdkit(port, "--no-sr", "file", str(image(directory)))


def nbdkit_with_large_blocks(directory: Path, port: int) -> list[str]:
    sizes = ["blocksize-minimum=64K", "blocksize-preferred=64K", "blocksize-maximum=128K"]
    policy = [*sizes, "blocksize-error-policy=error"]
    path = str(image(directory))
    return nbdkit(port, "--filter=blocksize-policy", "file", path, *policy)


def qemu_raw(directory: Path, port: int) -> list[str]:
    return qemu_nbd(port, "raw", image(directory))


def qemu_qcow2(directory: Path, port: int) -> list[str]:
    """Half of the data in the backing file, the rest above it; holes in both."""
    data = source_bytes(SIZE_BYTES)
    base, top = directory / "base.qcow2", directory / "top.qcow2"
    below = sparse(bytes(data[: SIZE_BYTES // 2] + bytes(SIZE_BYTES // 2)), directory / "below")
    run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(below), str(base)])
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base), str(top)])
    (directory / "above").write_bytes(data[SIZE_BYTES // 2 :])
    write = f"write -q -s {directory / 'above'} {SIZE_BYTES // 2} {SIZE_BYTES // 2}"
    run(["qemu-io", "-f", "qcow2", "-c", write, str(top)])
    return qemu_nbd(port, "qcow2", top)


def qemu_nbd(port: int, kind: str, path: Path) -> list[str]:
    return qemu_nbd_for(8, port, kind, path)


def qemu_nbd_for(clients: int, port: int, kind: str, path: Path) -> list[str]:
    """It lets so many connect at a time; others wait unheard."""
    flags = ["--persistent", f"--shared={clients}", "-b", "127.0.0.1"]
    return ["qemu-nbd", *flags, "-x", "disk", "-p", str(port), "-f", kind, str(path)]


def nbd_server(directory: Path, port: int) -> list[str]:
    """It serves named exports, of which the empty one is none.

    It detaches itself and serves each client in a process of its own: in a process namespace of
    their own they end together.
    """
    config = directory / "nbd-server.conf"
    config.write_text(
        f"[generic]\nlistenaddr = 127.0.0.1\nport = {port}\n"
        f"[disk]\nexportname = {image(directory)}\n"
    )
    server = f"nbd-server -C {config} -p {directory / 'pid'} && exec sleep infinity"
    return ["unshare", "--pid", "--fork", "--kill-child=KILL", "sh", "-c", server]


#: how it is started -> what it offers, and whether it tells holes
SOURCES: dict[Callable[[Path, int], list[str]], tuple[str, bool]] = {
    our_target: ("everything", False),
    our_target_with_store: ("everything", False),
    nbdkit_file: ("blocks", True),
    nbdkit_memory: ("blocks", False),
    nbdkit_oldstyle: ("blocks", False),
    nbdkit_without_structured_replies: ("blocks", False),
    nbdkit_with_large_blocks: ("blocks", False),
    qemu_raw: ("blocks", False),
    qemu_qcow2: ("blocks", True),
    nbd_server: ("blocks", False),
}


def at_work(handle: Any, model: bytearray, requests: int) -> None:
    """Random requests, each reply compared: few enough that most of the disk stays to be copied."""
    actor = Actor(handle, model, 0, SIZE_BYTES, 7)
    for _ in range(requests):
        actor.step()


@pytest.mark.parametrize("kind", SOURCES, ids=lambda kind: kind.__name__)
def test_a_copy_from_any_server_is_exact_also_when_it_is_killed_and_comes_back(
    tmp_path: Path, kind: Callable[[Path, int], list[str]]
) -> None:
    model = source_bytes(SIZE_BYTES)
    offers, tells_holes = SOURCES[kind]
    ours = kind in (our_target, our_target_with_store)
    if kind is nbd_server and os.geteuid() != 0:
        pytest.skip("ending nbd-server with all its processes needs root")
    with daemon(tmp_path, "source", lambda port: kind(tmp_path, port)) as source:
        uri = f"source=nbd://127.0.0.1:{source.port}" + ("" if ours else "/disk")
        store = f"store={tmp_path / 'store'}"
        keys = (store, uri, "rate=2M", "window=256K", "retry-timeout=120")
        with plugin(tmp_path, "proxy", *keys) as server:
            handle = server.connect()
            at_work(handle, model, 50)
            source.kill()
            with ThreadPoolExecutor(1) as pool:
                work = pool.submit(at_work, handle, model, 100)
                time.sleep(0.3)
                source.start()
                work.result()
            wait_for(lambda: server.status()["source_connected"], "the source", PATIENCE_S)
            assert server.status()["state"] == "active"
            server.hurry()
            status = server.wait(PATIENCE_S)
            Actor(handle, model, 0, SIZE_BYTES, 1).check_all()
    assert (tmp_path / "store" / "disk.img").read_bytes() == model
    assert status["source_offers"] == offers
    assert (status["hole_bytes"] > 0) == tells_holes


def test_a_connection_cut_in_the_middle_of_a_reply_costs_nothing(tmp_path: Path) -> None:
    model = source_bytes(SIZE_BYTES)
    with daemon(tmp_path, "source", lambda port: nbdkit_file(tmp_path, port)) as source:
        relay = Relay(source.port)
        relay.cut_after_bytes = 700_000
        uri = f"source=nbd://127.0.0.1:{relay.port}"
        keys = (f"store={tmp_path / 'store'}", uri, "rate=30M", "window=256K")
        with plugin(tmp_path, "proxy", *keys) as server:
            handle = server.connect()
            actor = Actor(handle, model, 0, SIZE_BYTES, 7)
            for _ in range(3000):
                actor.step()
                if relay.cuts > 1:
                    break
            relay.cut_after_bytes = None
            server.hurry()
            server.wait(PATIENCE_S)
        relay.close()
    assert relay.cuts > 1
    assert (tmp_path / "store" / "disk.img").read_bytes() == model
