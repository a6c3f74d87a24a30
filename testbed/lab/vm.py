"""One run in the lab's virtual machine: boot, show what the program prints, fetch its files.

QEMU always emulates the processor (TCG): no host feature is needed, and on the virtual clock it can
count instructions. Three rules keep a virtual run independent of the host:

- one CPU, `-icount shift=0,sleep=off`: a guest nanosecond is an executed instruction, and idle time
  is skipped. It is recorded, into nothing, because QEMU's threads then take turns: else the main
  loop may skip idle time after the CPU has halted and before its instructions are counted;
- no input but the image, the initramfs and the seed (`-rtc base=...,clock=vm`, `-seed`);
- output never makes the guest wait: serial ports write into files, results into a file that the
  guest sees as memory (an NVDIMM). The host reads those files from the outside.

Nothing is left behind, however the run ends: every file of a run is unlinked as it is created and
reaches QEMU as a file descriptor, and QEMU dies with this process (setpriv --pdeathsig).
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from testbed.lab import payload
from testbed.lab.image import Image, LabError
from testbed.lab.luggage import Luggage

VIRTUAL_EPOCH = "2026-01-01"
RESULT_BYTES = 1 << 30
POLL_S = 0.05
CONSOLE_TAIL_LINES = 45
PANIC = "Kernel panic"
TIMEOUT_STATUS = 124
# Kernel messages go to ttyS0; a panic ends QEMU at once (panic=-1 reboots, -no-reboot exits).
# At addresses that are always the same, emulated code is compiled once, not for each process; the
# kernel's tests of its own ciphers would be a third of a boot.
KERNEL_COMMAND_LINE = (
    "console=ttyS0 quiet loglevel=3 panic=-1 mitigations=off nokaslr norandmaps"
    " cryptomgr.notests nbd.nbds_max=16"
)
# On one CPU the HPET serves as well as the local APIC's timer, whose calibration takes two seconds
# of emulation at every boot.
VIRTUAL_COMMAND_LINE = "nolapic_timer"
ICOUNT = "shift=0,sleep=off,rr=record,rrfile=/dev/null"
# With ERMS the kernel and the C library copy memory by `rep movsb`: a byte an instruction, that is
# a byte a nanosecond on the virtual clock. Without, it is eight.
PROCESSOR = "max,-erms"


@dataclass(frozen=True)
class Settings:
    """How the machine is built; everything that a virtual run's outcome may depend on."""

    clock: str  # "virtual" or "real"
    seed: int
    memory_mib: int
    cpus: int

    def __post_init__(self) -> None:
        if self.clock == "virtual" and self.cpus != 1:
            raise ValueError("the virtual clock has one CPU")


@dataclass(frozen=True)
class _Files:
    """The run's files, all unlinked: initramfs, both consoles, results, QEMU's own complaints."""

    initramfs: IO[bytes]
    kernel_console: IO[bytes]
    program_console: IO[bytes]
    result: IO[bytes]
    complaints: IO[bytes]

    @classmethod
    def create(cls, stack: ExitStack, initramfs: bytes) -> "_Files":
        files = cls(*(stack.enter_context(_unlinked_file()) for _ in range(5)))
        files.initramfs.write(initramfs)
        files.initramfs.flush()
        os.truncate(files.result.fileno(), RESULT_BYTES)
        return files

    def descriptors(self) -> tuple[int, ...]:
        passed = (self.initramfs, self.kernel_console, self.program_console, self.result)
        return tuple(file.fileno() for file in passed)


def run(
    image: Image,
    arguments: Sequence[str],
    settings: Settings,
    *,
    out: Path,
    timeout_s: float,
    stdout: BinaryIO,
    files: Mapping[str, Path] | None = None,
    luggage: Luggage | None = None,
) -> int:
    """Runs `python3 -m ARGUMENTS...` and returns its exit status; its files appear in `out`."""
    told = {"LAB_TASK": "program", "LAB_CLOCK": settings.clock, "LAB_SEED": str(settings.seed)}
    with ExitStack() as stack:
        packed = payload.initramfs(image, arguments, told, files, luggage=luggage)
        own = _Files.create(stack, packed)
        console = ["-serial", f"file:{_path(own.program_console)}"]
        process = _start(_command(image, settings, own) + console, own, own_session=True)
        stack.callback(_end, process)
        in_time = _follow(process, own.program_console, stdout, time.monotonic() + timeout_s)
        if not in_time:
            _end(process)
            print(f"lab: ended after {timeout_s:g} s (--timeout)", file=sys.stderr)
            return TIMEOUT_STATUS
        return _result(process, own, out)


def shell(image: Image, settings: Settings, *, out: Path) -> int:
    """An interactive shell in the machine, on this terminal."""
    size = shutil.get_terminal_size()
    told = {"LAB_TASK": "shell", "LAB_CLOCK": settings.clock, "LAB_SEED": str(settings.seed)}
    told |= {"LAB_ROWS": str(size.lines), "LAB_COLUMNS": str(size.columns)}
    told |= {"LAB_TERM": os.environ.get("TERM", "dumb")}
    with ExitStack() as stack:
        files = _Files.create(stack, payload.initramfs(image, (), told))
        console = ["-chardev", "stdio,id=terminal,signal=off", "-serial", "chardev:terminal"]
        process = _start(_command(image, settings, files) + console, files, own_session=False)
        stack.callback(_end, process)
        process.wait()
        return _result(process, files, out)


def _unlinked_file() -> IO[bytes]:
    return tempfile.TemporaryFile(prefix="relocator-lab-")


def _path(file: IO[bytes]) -> str:
    return f"/proc/self/fd/{file.fileno()}"


def _command(image: Image, settings: Settings, files: _Files) -> list[str]:
    root_bytes = image.root.stat().st_size
    slots_mib = settings.memory_mib + (root_bytes + RESULT_BYTES >> 20) + 1024
    command = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    command += ["-cpu", PROCESSOR, "-machine", "pc,nvdimm=on"]
    command += ["-m", f"{settings.memory_mib}M,slots=2,maxmem={slots_mib}M"]
    command += ["-smp", str(settings.cpus), "-seed", str(settings.seed)]
    kernel = KERNEL_COMMAND_LINE
    if settings.clock == "virtual":
        kernel += f" {VIRTUAL_COMMAND_LINE}"
        command += ["-accel", "tcg,thread=single,tb-size=512", "-icount", ICOUNT]
        command += ["-rtc", f"base={VIRTUAL_EPOCH},clock=vm"]
    else:
        command += ["-accel", "tcg,thread=multi,tb-size=512", "-rtc", "base=utc"]
    memory = f"memory-backend-file,share=on,mem-path={image.root},size={root_bytes},readonly=on"
    command += ["-object", f"{memory},id=root", "-device", "nvdimm,memdev=root,unarmed=on"]
    memory = f"memory-backend-file,share=on,mem-path={_path(files.result)},size={RESULT_BYTES}"
    command += ["-object", f"{memory},id=result", "-device", "nvdimm,memdev=result"]
    command += ["-kernel", str(image.kernel), "-initrd", _path(files.initramfs)]
    command += ["-append", kernel, "-serial", f"file:{_path(files.kernel_console)}"]
    return command


def _start(command: list[str], files: _Files, own_session: bool) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if own_session else None,
        stdout=subprocess.DEVNULL if own_session else None,
        stderr=files.complaints,
        pass_fds=files.descriptors(),
        start_new_session=own_session,  # Ctrl-C is for us; we end the machine
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _follow(
    process: subprocess.Popen[bytes], console: IO[bytes], stdout: BinaryIO, deadline_s: float
) -> bool:
    """Copies the console to `stdout` while the machine runs; False if the deadline came first."""
    position = 0
    while True:
        ended = process.poll() is not None
        while chunk := os.pread(console.fileno(), 1 << 16, position):
            stdout.write(chunk)
            stdout.flush()
            position += len(chunk)
        if ended:
            return True
        if time.monotonic() > deadline_s:
            return False
        time.sleep(POLL_S)


def _result(process: subprocess.Popen[bytes], files: _Files, out: Path) -> int:
    """Unpacks the results into `out`; the program's exit status."""
    if process.returncode != 0:
        raise LabError(f"QEMU failed ({process.returncode}):{_tail(files.complaints)}")
    out.mkdir(parents=True, exist_ok=True)
    status = None
    files.result.seek(0)
    try:
        with tarfile.open(fileobj=files.result, mode="r:") as tar:
            for member in tar:
                if member.name == "status":
                    status = int(_content(tar, member).read())
                else:
                    unpack(tar, member, out)
    except tarfile.TarError as error:
        raise LabError(
            f"the results can't be read: {error}{_tail(files.kernel_console)}"
        ) from error
    if status is None:
        tail = _tail(files.kernel_console)
        raise LabError(f"the lab ended before the program did; the end of its console:{tail}")
    return status


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    content = tar.extractfile(member)
    assert content is not None, f"{member.name} is not a file"
    return content


def unpack(tar: tarfile.TarFile, member: tarfile.TarInfo, out: Path) -> None:
    """Files, directories, symbolic links; hard links become copies, sockets and such are left."""
    path = out / PurePosixPath(member.name).relative_to("out")
    if not path.parent.resolve().is_relative_to(out.resolve().parent):
        raise LabError(f"the results hold a path that leads outside: {member.name}")
    if member.isdir():
        path.mkdir(parents=True, exist_ok=True)
        return
    if member.issym() or member.isreg() or member.islnk():
        path.unlink(missing_ok=True)
    if member.issym():
        path.symlink_to(member.linkname)
    elif member.isreg() or member.islnk():
        with path.open("wb") as file:
            shutil.copyfileobj(_content(tar, member), file, 1 << 20)
        path.chmod(0o755 if member.mode & 0o100 else 0o644)


def _tail(file: IO[bytes]) -> str:
    """The last lines; if the kernel panicked, from where it says why (the call trace is long)."""
    file.seek(0)
    lines = file.read().decode(errors="replace").replace("\r", "").splitlines()
    said = [line for line in lines if line.strip()]
    why = next((n for n, line in enumerate(said) if PANIC in line), len(said))
    shown = said[min(why, max(0, len(said) - CONSOLE_TAIL_LINES)) :]
    return "".join(f"\n  {line}" for line in shown) or " (it says nothing)"
