"""mmdebstrap, and what stands around a call of it: progress, an orderly end, the kernel.

What is built from Debian's packages is built by these: the lab's root image (`build`) and the guest
that moves (`testbed.guest.build`). Nothing of the host goes in but its apt's proxy.
"""

import lzma
import os
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from relocator.cli import host
from testbed.lab.image import SOURCE_DATE_EPOCH, SUITE, LabError, mirror


class Steps:
    """Progress: one line a step with its duration, the current one live on a terminal."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._name: str | None = None
        self._started_s = 0.0

    def begin(self, name: str) -> None:
        self.end()
        self._name, self._started_s = name, time.monotonic()
        self.tick()

    def tick(self) -> None:
        if self._name is not None and self._log.isatty():
            self._write(f"\r  {self._name} … {self._elapsed_s():3.0f} s", end="")

    def end(self) -> None:
        if self._name is not None:
            lead = "\r" if self._log.isatty() else ""
            self._write(f"{lead}  {self._name}: {self._elapsed_s():.0f} s".ljust(50))
            self._name = None

    def _elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def _write(self, text: str, end: str = "\n") -> None:
        print(text, end=end, file=self._log, flush=True)


def mmdebstrap(
    work: Path, options: Sequence[str], packages: Sequence[str], target: str, steps: Steps
) -> None:
    """Runs mmdebstrap with these options; it leaves `packages` and what they need in `target`."""
    if host.is_root():
        # Name spaces of its own, so that its end, however it comes, ends every process and takes
        # every mount away: no /proc or /dev stays mounted in a tree that we then remove.
        command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"]
        command += ["--kill-child=KILL", "--mount-proc", "mmdebstrap", "--mode=root"]
    else:
        command = ["setpriv", "--pdeathsig", "TERM", "mmdebstrap", "--mode=unshare"]
    command += ["--include=" + ",".join(packages), *options]
    command += [f"--aptopt={option}" for option in apt_proxies()]
    command += [SUITE, target, *mirror()]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(SOURCE_DATE_EPOCH), "LC_ALL": "C.UTF-8"}
    environment["INITRD"] = "No"  # the kernel package need not make one
    if host.is_root():  # another user's id could not enter our cache
        environment["TMPDIR"] = str(work)
    log_path = work / "mmdebstrap.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        try:
            _follow(process, log_path, steps)
        finally:
            _stop(process)
    if process.returncode != 0:
        last = tail(log_path.read_text(errors="replace"))
        raise LabError(f"mmdebstrap failed ({process.returncode}):{last}")


def apt_proxies() -> list[str]:
    """The host's APT proxy settings, which mmdebstrap's own APT would not read."""
    done = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False)
    return re.findall(r"^Acquire::https?::Proxy .*$", done.stdout, flags=re.MULTILINE)


# What mmdebstrap announces, and how it is shown.
_STAGES = (
    ("downloading", "Debian packages: download"),
    ("extracting", "Debian packages: base system"),
    ("installing remaining", "Debian packages: the rest"),
    ("tar-in", "trim and pack"),
    ("download ", "take away"),
)


def _follow(process: subprocess.Popen[bytes], log: Path, steps: Steps) -> None:
    seen = 0
    reached = -1
    while True:
        ended = process.poll() is not None
        lines = log.read_text(errors="replace").splitlines()
        for line in lines[seen:]:
            for stage, (words, name) in enumerate(_STAGES):
                if line.startswith("I: ") and words in line and stage > reached:
                    steps.begin(name)
                    reached = stage
        seen = len(lines)
        if ended:
            return
        steps.tick()
        time.sleep(0.2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends an mmdebstrap that was interrupted; an ordinary user's takes its own tree away."""
    if process.poll() is None and not host.is_root():
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
    if process.poll() is None:
        process.kill()
        process.wait()


def uncompressed(vmlinuz: bytes) -> bytes:
    """The ELF kernel inside Debian's bzImage: booting it saves seconds of decompression."""
    start = vmlinuz.find(b"\xfd7zXZ\0")
    if start < 0:
        raise LabError(
            "the kernel package's vmlinuz holds no xz stream; has Debian changed its format?"
        )
    return lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(vmlinuz[start:])


def tail(text: str, lines: int = 8) -> str:
    """The last lines, indented."""
    return "\n  " + "\n  ".join(text.strip().splitlines()[-lines:])
