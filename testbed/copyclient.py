"""A client with a timetable: `testbed.copyclient URI KIND RATE START LOG SEED DATA SIZE`.

Asks for SIZE bytes at random, RATE times a second from START (CLOCK_MONOTONIC) until SIGTERM,
whatever is still unanswered: latency counts from the timetable, so waiting in a queue counts too.
Blocks are drawn from the image's data (DATA bytes with a hole of a quarter of that in the middle).
Lines of the log: seconds of CLOCK_MONOTONIC at the start, latency in seconds.
"""

import random
import signal
import sys
import time
from pathlib import Path

BLOCK_BYTES = 4096


def offset_of(block: int, data_bytes: int, block_bytes: int = BLOCK_BYTES) -> int:
    """Where the `block`th block of data lies in the image."""
    offset = block * block_bytes
    return offset + data_bytes // 4 if offset >= data_bytes // 2 else offset


class Client:
    """One connection; requests in flight are libnbd's."""

    def __init__(
        self, uri: str, kind: str, seed: int, data_bytes: int, block_bytes: int = BLOCK_BYTES
    ) -> None:
        import nbd

        self._nbd = nbd
        self._handle = nbd.NBD()
        self._handle.connect_uri(uri)
        self._kind = kind
        self._random = random.Random(f"{kind} {seed}")
        self._data_bytes = data_bytes
        self._block_bytes = block_bytes
        self._payload = self._random.randbytes(block_bytes)
        self.answers: list[tuple[float, float]] = []
        self.ending = False
        self._warm_up()

    def _warm_up(self) -> None:
        """One request within the hole: the first of a connection pays for starting, not for I/O."""
        hole = self._data_bytes // 2
        if self._kind == "read":
            self._handle.pread(self._block_bytes, hole)
        else:
            self._handle.pwrite(self._payload, hole)

    def _ask(self, due_s: float) -> None:
        block = self._random.randrange(self._data_bytes // self._block_bytes)
        offset = offset_of(block, self._data_bytes, self._block_bytes)
        buffer = self._nbd.Buffer(self._block_bytes)

        def answered(error: object) -> int:
            code = getattr(error, "value", error)
            if code:
                raise OSError(code, f"{self._kind} of {offset}")
            self.answers.append((due_s, time.monotonic() - due_s))
            return 1

        if self._kind == "read":
            self._handle.aio_pread(buffer, offset, completion=answered)
        else:
            buffer = self._nbd.Buffer.from_bytearray(bytearray(self._payload))
            self._handle.aio_pwrite(buffer, offset, completion=answered)

    def run(self, start_s: float, rate: float) -> None:
        """The timetable, until `ending`; what is in flight is waited for."""
        asked = 0
        while not self.ending:
            due_s = start_s + asked / rate
            left_s = due_s - time.monotonic()
            if left_s <= 0:
                self._ask(due_s)
                asked += 1
            elif self._handle.aio_in_flight():
                self._handle.poll(max(1, int(left_s * 1000)))
            else:
                time.sleep(left_s)
        while self._handle.aio_in_flight():
            self._handle.poll(1000)
        self._handle.shutdown()


def main() -> int:
    uri, kind, rate, start_s, log, seed, data_bytes, size = sys.argv[1:]
    client = Client(uri, kind, int(seed), int(data_bytes), int(size))

    def end(_number: int, _frame: object) -> None:
        client.ending = True

    signal.signal(signal.SIGTERM, end)
    client.run(float(start_s), float(rate))
    lines = (f"{start:.6f} {latency:.6f}\n" for start, latency in sorted(client.answers))
    Path(log).write_text("".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
