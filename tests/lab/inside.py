"""What tests/lab runs in the lab: `python3 -m tests.lab.inside TASK [ARGUMENT...]`."""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

LINE = "0123456789 abcdefghijklmnopqrstuvwxyz äöü €\n"
PRINTED_BYTES = 1_000_000
LARGE_BYTES = 32 << 20
STATUS = 7


def printed() -> bytes:
    """About a megabyte of numbered lines."""
    count = PRINTED_BYTES // len(LINE.encode())
    return "".join(f"{number:06} {LINE}" for number in range(count)).encode()


def large_block(number: int) -> bytes:
    """MiB `number` of the large file."""
    return hashlib.sha256(b"%d" % number).digest() * (1 << 15)


def everything() -> int:
    """Uses all that the lab promises: arguments, environment, output, files, status, network."""
    from testbed.lab import entry

    out = Path(os.environ["LAB_OUT"])
    (out / "arguments.json").write_text(json.dumps(sys.argv[2:]))
    chosen = entry.choose()
    facts = {
        "environment": dict(sorted(os.environ.items())),
        "directory": str(Path.cwd()),
        "choice": [chosen.where, chosen.reason],
        "files": given_files(),
        "terminals": [os.isatty(fd) for fd in (0, 1, 2)],
        "processors": os.cpu_count(),
        "random": os.urandom(8).hex(),
        "rtt_ms": round_trips(),
        "time_s": time.time(),
        "monotonic_ns": time.monotonic_ns(),
    }
    (out / "facts.json").write_text(json.dumps(facts, indent=1))
    (out / "sub directory").mkdir()
    with (out / "sub directory" / "large").open("wb") as file:
        for number in range(LARGE_BYTES >> 20):
            file.write(large_block(number))
    (out / "link").symlink_to("facts.json")
    os.mkfifo(out / "fifo")
    # A daemon that keeps our output open must not keep the lab waiting.
    subprocess.Popen(["sleep", "100000"], start_new_session=True)
    sys.stdout.buffer.write(printed())
    sys.stdout.flush()
    print("and this on standard error", file=sys.stderr)
    return STATUS


def given_files() -> dict[str, str]:
    """The files that were given to the lab, with what they hold."""
    return {path.name: path.read_text() for path in Path(os.environ["LAB_FILES"]).iterdir()}


def round_trips() -> list[str]:
    """ping over a delayed and jittered link between two name spaces."""
    for command in (
        "ip netns add a",
        "ip netns add b",
        "ip link add wa netns a type veth peer name wb netns b",
        "ip -n a addr add 10.9.0.1/24 dev wa",
        "ip -n b addr add 10.9.0.2/24 dev wb",
        "ip -n a link set wa up",
        "ip -n b link set wb up",
        "ip netns exec a tc qdisc add dev wa root netem delay 10ms 2ms rate 100mbit limit 1000",
    ):
        subprocess.run(command.split(), check=True)
    ping = "ip netns exec a ping -n -i 0.2 -c 10 10.9.0.2"
    output = subprocess.run(ping.split(), check=True, capture_output=True, text=True).stdout
    return [line.split("time=")[1] for line in output.splitlines() if "time=" in line]


def wait() -> int:
    """Says that it has started, and never ends by itself."""
    try:
        print("started")
        while True:
            time.sleep(0.1)
    finally:
        (Path(os.environ["LAB_OUT"]) / "cleaned up").touch()


def panic() -> int:
    """Crashes the kernel."""
    print("about to crash")
    Path("/proc/sysrq-trigger").write_text("c")
    return 0


def clock() -> int:
    """Prints which clock, how many processors, and how long half a second takes."""
    began_s = time.monotonic()
    time.sleep(0.5)
    print(os.environ["LAB_CLOCK"], os.cpu_count(), round(time.monotonic() - began_s, 1))
    return 0


def files() -> int:
    """Prints what was given."""
    print(given_files())
    return 0


TASKS: dict[str, Callable[[], int]] = {
    "everything": everything,
    "wait": wait,
    "panic": panic,
    "clock": clock,
    "files": files,
}

if __name__ == "__main__":
    sys.exit(TASKS[sys.argv[1]]())
