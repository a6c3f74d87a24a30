"""What a process has used: the processor's time, and memory.

On the lab's virtual clock a nanosecond of processor time is an executed instruction.
"""

import time
from pathlib import Path

_OF_A_PROCESS = 2  # the kernel's CPUCLOCK_SCHED: clock_getcpuclockid(3) of a whole process
_MEMORY = {"rss": "VmRSS", "peak": "VmHWM", "anonymous": "RssAnon"}


def processor_ns(pid: int) -> int:
    """Nanoseconds of processor time of all threads of a process, also of those that ended."""
    return time.clock_gettime_ns(~pid << 3 | _OF_A_PROCESS)


def memory_kib(pid: int) -> dict[str, int]:
    """What a process holds, see `parse_memory_kib`."""
    return parse_memory_kib(Path(f"/proc/{pid}/status").read_text())


def parse_memory_kib(status: str) -> dict[str, int]:
    """`rss`, its `peak`, and how much of it is not file pages, from the text of /proc/PID/status.

    File pages (`rss` less `anonymous`) are page cache that the process has mapped: the kernel takes
    them back when it needs them.
    """
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {key: int(fields[name].split()[0]) for key, name in _MEMORY.items()}
