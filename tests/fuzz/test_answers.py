"""A source that lies: whatever it answers is understood, or is its fault; nothing breaks here.

The answers come from a real server that has them for its disk: a verb's answer is what is read.
"""

import atexit
import json
import subprocess
import tracemalloc
import zlib
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relocator.copying import heat, recent
from relocator.errors import RelocatorError, StateError, UpstreamError
from relocator.source.answer import Answer, base_of, stale
from relocator.source.endpoint import Endpoint
from relocator.source.remote import Source
from relocator.source.replies import MAGIC
from relocator.store import runs
from relocator.store.bitmap import Bitmap
from relocator.store.geometry import Geometry
from relocator.store.meta import Base
from relocator.store.store import Store
from tests.fuzz import temporary
from tests.fuzz.test_control import json_values
from tests.support.command import relocator
from tests.support.model import source_bytes
from tests.support.servers import PLUGIN, Server, mistaken, plugin, proxy, wait_for
from tests.support.stores import make_store

SIZE_BYTES = 1 << 20
BLOCKS = SIZE_BYTES // 4096
TOKEN = "0123456789abcdef" * 2


@cache
def server() -> tuple[Path, Endpoint]:
    """A server that gives what is in a file, for as long as this process lives."""
    directory = temporary.directory()
    file, socket, pid = (directory / name for name in ("answer", "socket", "pid"))
    file.write_bytes(b"")
    command = ["nbdkit", "--exit-with-parent", "-f", "-t", "1", "-U", str(socket), "-P", str(pid)]
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([*command, "file", str(file)], **quiet)
    atexit.register(process.wait)
    atexit.register(process.terminate)  # before that: they are called last in, first out
    wait_for(pid.exists, "the server")
    return file, Endpoint(f"nbd+unix:///?socket={socket}")


@cache
def store() -> Store:
    found = make_store(temporary.directory() / "store", SIZE_BYTES)
    found.update(base=Base(TOKEN, 3))
    return found


def packed(*ranges: tuple[int, int]) -> bytes:
    bits = Bitmap(BLOCKS)
    for one in ranges:
        bits.set(*one)
    return runs.pack(bits)


def true_fields() -> dict[str, Any]:
    """What a source that is honest says."""
    return {
        "ok": True,
        "id": TOKEN,
        "epoch": 3,
        "seal": None,
        "moved": False,
        "time_s": 1.7e9,
        "base": {"id": TOKEN, "epoch": 1, "seal": TOKEN},
        "group_bytes": 1 << 18,
        "block_bytes": 4096,
        "digests": "blake2b-256",
    }


MAPS = {
    "dirty": packed((1, 5), (90, 200)),
    "diverged": packed((0, BLOCKS)),
    "ended": packed(),
    "recent": zlib.compress(bytes(800)),
    "rest_blocks": packed((7, 8)),
    "rest": bytes(4096),
}
numbers = st.integers(-2, 300) | st.sampled_from([1 << 31, 1 << 40, 1 << 63, 10**30])
maps = (
    st.binary(max_size=60)
    | st.binary(max_size=60).map(zlib.compress)
    | st.binary(max_size=60).map(lambda data: zlib.compress(b"r" + data))
    | st.sampled_from(sorted(MAPS.values()))
)


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """A verb's answer in which something is not as it should be."""
    fields, attached = true_fields(), dict(MAPS)
    attached.update(draw(st.dictionaries(st.sampled_from(sorted(MAPS)), maps, max_size=2)))
    body, places = b"", {}
    for name, data in attached.items():
        places[name] = [len(body), len(data)]
        body += data
    fields["attachments"] = places
    changed = st.sampled_from(sorted(fields))
    fields.update(draw(st.dictionaries(changed, json_values | numbers, max_size=2)))
    for name in draw(st.lists(changed, max_size=1)):
        fields.pop(name, None)
    if isinstance(fields.get("attachments"), dict):
        lies = st.dictionaries(st.sampled_from(sorted(MAPS)), st.lists(numbers, max_size=3))
        fields["attachments"].update(draw(lies))
    line = json.dumps({"relocator": MAGIC, **fields}).encode() + b"\n"
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(line) - 1))
        line = line[:at] + draw(st.binary(max_size=4)) + line[at + 1 :]
    return line + body + bytes(8192)


def use(answer: Answer) -> None:
    """All that is done with an answer."""
    geometry = Geometry(SIZE_BYTES)
    base_of(answer)
    answer.geometry(SIZE_BYTES)
    if answer["base"] is not None:
        Base(*(answer["base"][key] for key in ("id", "epoch", "seal")))
    heat.shift_of(answer["group_bytes"], SIZE_BYTES)
    for name, began in (("dirty", 0), ("ended", 1)):
        for first, end in stale(store(), answer, name, began):
            assert 0 <= first <= end <= geometry.total_blocks
    places = recent.unpack(answer.attachments["recent"]) if "recent" in answer.attachments else []
    for first, end in recent.ranges(places, 4096, BLOCKS):
        assert 0 <= first < end <= BLOCKS
    for first, end in answer.map("rest_blocks", BLOCKS):
        answer.rest(first, (end - first) * 4096, lambda: None)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(answers())
@example(b'{"relocator": "relocator-1", "a": ' + b"[" * 8000 + b"\n" + bytes(8192))
@example(b'{"relocator": "relocator-1", "ok": true, "attachments": {"a": [1e999, 1]}}\n')
@example(b'{"relocator": "relocator-1", "ok": true, "attachments": {"a": [-9, 9]}}\n')
def test_answer(content: bytes) -> None:
    """An answer is used as it should be, or is the source's fault."""
    file, endpoint = server()
    file.write_bytes(content)
    with suppress(UpstreamError, StateError):
        answer = Source(endpoint).call("seal", rest_bytes=4096)
        try:
            use(answer)
        finally:
            answer.end(lambda: None)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([0, 1, 7, 8, 255, 4096, 1 << 29]))
def test_map(data: bytes, bits: int) -> None:
    """A map's runs are within the disk, and ascend."""
    for content in (data, zlib.compress(b"r" + data)):
        with suppress(UpstreamError):
            at = 0
            for first, end in runs.unpack(content, bits):
                assert at <= first <= end <= bits
                at = end


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(max_size=200), st.sampled_from([1, 64, 255, 1 << 29]))
def test_working_set(data: bytes, blocks: int) -> None:
    """The places that are copied first are on the disk."""
    for content in (data, zlib.compress(data)):
        with suppress(UpstreamError):
            for first, end in recent.ranges(recent.unpack(content), 4096, blocks):
                assert 0 <= first < end <= blocks


@pytest.mark.parametrize(
    "unpack", [lambda data: runs.unpack(data, BLOCKS), recent.unpack], ids=["map", "working set"]
)
def test_what_would_unpack_to_more_than_there_can_be_takes_no_memory(
    unpack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "MOST_PACKED_BYTES", 1 << 20)
    bomb = zlib.compress(b"r" + bytes(64 << 20))
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    try:
        with pytest.raises(UpstreamError):
            unpack(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


LIES = {
    "epoch": '{"epoch": "soon"}',
    "id": '{"id": {"a": 1}}',
    "no block": '{"block_bytes": 12}',
    "groups of a byte": '{"group_bytes": 1}',
    "no group": '{"group_bytes": 0}',
    "refusal": '{"ok": False, "error": "\\x1b[2J [/] \\n no"}',
}


def liar(directory: Path, lie: str, verb: str) -> Any:
    """A target that answers `verb` with fields that are wrong, from when `lie` is a file there."""
    mistake = f"""
from relocator.running import exports
_true, _lie = exports.encode, {str(directory / "lie")!r}
def _encode(reply):
    changed = {lie} if os.path.exists(_lie) and {verb!r} in (nbdkit.export_name() or "") else {{}}
    return _true(reply._replace(fields={{**reply.fields, **changed}}))
exports.encode = _encode
"""
    (directory / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    disk = f"disk={directory / 'disk.img'}"
    return plugin(directory, "target", disk, file=mistaken(directory, mistake))


def told(copy: Server) -> str:
    """The copy's last error, as the page shows it: on one line, whatever is in it."""
    error = str(copy.status()["error"])
    assert error.isprintable()
    shown = relocator("status", str(copy.control_path))
    assert (shown.returncode, "\x1b" in shown.stdout) == (0, False)
    return error


@pytest.mark.parametrize("lie", ["epoch", "id", "no group", "refusal"])
def test_a_copy_outlives_a_source_that_lies_in_standby(tmp_path: Path, lie: str) -> None:
    with liar(tmp_path, LIES[lie], "control/") as source:
        with proxy(tmp_path, source, "mode=standby", "refresh=0.1", "retry-timeout=1") as copy:
            wait_for(lambda: copy.status()["rounds"] > 1, "rounds")
            (tmp_path / "lie").touch()
            source.connect().pwrite(b"new" * 4096, 65536)
            if lie != "refusal":  # which means that the disk moves
                wait_for(lambda: "can't be understood" in told(copy), "the lie to be noticed")
            with pytest.raises(RelocatorError, match="the source"):
                copy.control.call("activate", wait=True)
            assert copy.status()["state"] == "standby"
            assert copy.process.poll() is None
            (tmp_path / "lie").unlink()
            copy.control.call("activate", wait=True)
            copy.wait()
            guest = copy.connect()
            assert guest.pread(12288, 65536) == b"new" * 4096
            wait_for(lambda: copy.status()["error"] is None, "the copy to be content")


@pytest.mark.parametrize("lie", ["epoch", "no block", "groups of a byte", "refusal"])
def test_a_source_that_lies_from_the_start_is_refused_or_copied(tmp_path: Path, lie: str) -> None:
    (tmp_path / "lie").touch()
    with liar(tmp_path, LIES[lie], "control/") as source:
        keys = [f"store={tmp_path / 'store'}", f"source={source.uri}", "--run", "true"]
        done = subprocess.run(
            ["nbdkit", "-f", "-U", str(tmp_path / "s"), "python", str(PLUGIN), *keys],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.count("\n") == 1
