"""What the guest does, inside it: told over one virtio port, telling over another.

Commands, a line each, on the port `control`:

    write DISK RATE SEED    begin to write records, RATE a second, to the disk's ledger
    read DISK RATE SEED     begin to read random blocks of its large file, RATE a second
    run PROGRAM WORD...     run a program, such as fio; what it prints goes to the console
    rest                    end all of these, and say so
    stop                    the same, and end: the guest makes its disks clean and powers off

What it says, a line each, on the port `report`, which the host keeps:

    ready                              waiting for commands
    told,COMMAND                       it was read
    ack,DISK,SEQUENCE,SLOT,END,TOOK    a record is on the disk: the kernel has acknowledged fsync
    read,DISK,BLOCK,END,TOOK           a block was read, and is what it must be
    error,TEXT                         something is not as it must be; that worker has ended
    ran,STATUS,COMMAND                 a program has ended
    resting                            what was begun has ended

DISK is 0 for the first, END the guest's monotonic clock in seconds, TOOK in seconds. A record
goes out by O_DIRECT to a random slot, and fdatasync follows, each eighth time fsync, with which the
journal commits too; then an earlier record is read back.
Runs on the small Python of Debian's python3-minimal, from the guest's own disk.
"""

import mmap
import os
import sys
import time
from _random import Random
from _signal import SIG_IGN, SIGTERM, signal

from testbed.workloads.records import RECORD_BYTES, record, sequence_of

PORTS = "/dev/virtio-ports/"
DIRECTORIES = ["/", *(f"/disks/vd{letter}/" for letter in "bcdefgh")]
POLL_S = 0.05
EIGHT = 8


class Disk:
    """A file of records, read and written past the page cache."""

    def __init__(self, path: str, flags: int) -> None:
        self._file = os.open(path, flags | os.O_DIRECT)
        self._buffer = mmap.mmap(-1, RECORD_BYTES)  # page aligned, as O_DIRECT wants it
        self.slots = os.fstat(self._file).st_size // RECORD_BYTES

    def read(self, slot: int) -> bytes:
        if os.preadv(self._file, [self._buffer], slot * RECORD_BYTES) != RECORD_BYTES:
            raise OSError(f"a read of slot {slot} came back short")
        return bytes(self._buffer)

    def write(self, sequence: int, slot: int) -> None:
        self._buffer[:] = record(sequence, slot)
        if os.pwrite(self._file, self._buffer, slot * RECORD_BYTES) != RECORD_BYTES:
            raise OSError(f"a write of slot {slot} came back short")
        (os.fdatasync if sequence % EIGHT else os.fsync)(self._file)


class Port:
    """The port `report`: a line is one write, so workers may share it."""

    def __init__(self) -> None:
        self._file = os.open(PORTS + "report", os.O_WRONLY)

    def say(self, *words: object) -> None:
        os.write(self._file, (",".join(str(word) for word in words) + "\n").encode())


def paced(rate: float):
    """Yields the time at which each step starts, RATE a second, none of them early."""
    next_s = time.monotonic()
    while True:
        time.sleep(max(0.0, next_s - time.monotonic()))
        yield time.monotonic()
        next_s = max(next_s + 1 / rate, time.monotonic())


def write(port: Port, disk: int, rate: float, seed: int) -> None:
    ledger = Disk(DIRECTORIES[disk] + "ledger", os.O_RDWR)
    chance = Random(seed)
    last: dict[int, int] = {}
    for sequence, start_s in enumerate(paced(rate)):
        slot = int(chance.random() * ledger.slots)
        ledger.write(sequence, slot)
        end_s = time.monotonic()
        port.say("ack", disk, sequence, slot, f"{end_s:.6f}", f"{end_s - start_s:.6f}")
        last[slot] = sequence
        earlier = list(last)[int(chance.random() * len(last))]
        if sequence_of(ledger.read(earlier), earlier) != last[earlier]:
            raise ValueError(f"slot {earlier} of disk {disk} does not hold write {last[earlier]}")


def read(port: Port, disk: int, rate: float, seed: int) -> None:
    large = Disk(DIRECTORIES[disk] + "large", os.O_RDONLY)
    chance = Random(seed)
    for start_s in paced(rate):
        block = int(chance.random() * large.slots)
        found = large.read(block)
        end_s = time.monotonic()
        if sequence_of(found, block) != block:
            raise ValueError(f"block {block} of disk {disk}'s large file is not what it was")
        port.say("read", disk, block, f"{end_s:.6f}", f"{end_s - start_s:.6f}")


def program(port: Port, words: list[str]) -> None:
    """Runs one of /usr/bin to its end; one that fails is an error."""
    pid = os.posix_spawn(f"/usr/bin/{words[0]}", words, {"PATH": "/usr/bin:/bin"})
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except Ended:
        os.kill(pid, SIGTERM)
        os.waitpid(pid, 0)
        raise
    port.say("ran", status, " ".join(words))
    if status:
        raise OSError(f"it ended with status {status}")


class Ended(BaseException):
    """A worker was told to end; raised only between steps of its program."""


def worker(port: Port, words: list[str]) -> int:
    """A process that does it until it is told to end; its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 0
    signal(SIGTERM, SIG_IGN)
    try:
        signal(SIGTERM, _end)
        if words[0] == "run":
            program(port, words[1:])
        else:
            begin = {"write": write, "read": read}[words[0]]
            begin(port, int(words[1]), float(words[2]), int(words[3]))
    except Ended:
        pass
    except BaseException as error:
        port.say("error", f"{' '.join(words)}: {type(error).__name__}: {error}")
        status = 1
    os._exit(status)


def _end(_number: int, _frame: object) -> None:
    raise Ended


def commands():
    """Lines of the port `control`; a port that nobody holds at the host reads as at its end."""
    port = os.open(PORTS + "control", os.O_RDONLY)
    text = b""
    while True:
        more = os.read(port, 4096)
        if not more:
            time.sleep(POLL_S)
        text += more
        *lines, text = text.split(b"\n")
        for line in lines:
            yield line.decode().split()


def fill(path: str) -> None:
    """Gives a file's holes blocks: a record written into a hole would be several writes."""
    file = os.open(path, os.O_RDWR)
    for _ in range(os.fstat(file).st_size // RECORD_BYTES):
        os.write(file, bytes(RECORD_BYTES))
    os.fsync(file)
    os.close(file)


def main() -> int:
    port = Port()
    for directory in DIRECTORIES:
        if os.access(directory + "ledger", os.W_OK):
            fill(directory + "ledger")
    port.say("ready")
    workers: list[int] = []
    failed = 0
    for words in commands():
        port.say("told", " ".join(words))
        if words[0] in ("write", "read", "run"):
            workers.append(worker(port, words))
            continue
        for pid in workers:
            os.kill(pid, SIGTERM)
        for pid in workers:
            if status := os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
                failed += 1
                port.say("error", f"worker {pid} ended with {status}")
        workers.clear()
        port.say("resting")
        if words[0] == "stop":
            break
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
