"""What is done if the process that moves a guest is killed: while the guest stands still, for one.

The guard is a process of its own that does nothing but wait for the end of its input. If that comes
without the word that the move has ended, the mover has died, and the guard settles what is left as
`relocator migrate --settle` does: back to the source, or, once the guest has arrived, forward. What
can't be reached is tried again, for minutes: the guest may stand still there. It then says on the
terminal of the process that died where guest and disks are. Those of `relocator try` let the guest
go on, and the background copy.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import relocator
from relocator.signals import uninterrupted

_AT_REST = b"at rest\n"
#: `-m` and `-c` would look for modules in the current directory first (`-P`: not), where anybody's
#: may be. Ours are where this process has them from, which may be no place that Python looks in.
_OURSELVES = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import relocator
del sys.path[0]
from relocator.cli.main import main
sys.exit(main())
"""


class Guard:
    """Watches over this process; `arguments` are those of the command, `command` is the guard's."""

    def __init__(
        self, arguments: Sequence[str], command: Sequence[str] = ("migrate", "--settle")
    ) -> None:
        self._argv = [*_ourselves(), *command, *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def watch(self, *arguments: str) -> None:
        """From now on, until `at_rest`; `arguments` are more of the guard's command."""
        if self._process is None:
            argv = [*self._argv, "--when-killed", *arguments]
            self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, start_new_session=True)

    @property
    def watches(self) -> bool:
        """Whether it does something should this process end now: it may have been killed, too."""
        return self._process is not None and self._process.poll() is None

    def at_rest(self) -> None:
        """One side has guest and disks: there is nothing to be settled."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        with suppress(BrokenPipeError):
            process.stdin.write(_AT_REST)
        with suppress(BrokenPipeError):
            process.stdin.close()
        process.wait()


def _ourselves() -> list[str]:
    """The command `relocator`, such as this process runs it."""
    directory = Path(relocator.__file__).resolve().parents[1]
    return [sys.executable, "-P", "-c", _OURSELVES, str(directory)]


def killed() -> bool:
    """In the guard: wait; whether the process that is watched over has died in the midst of it.

    A signal that asks both to end, as the stop of a unit does, is meant for that process.
    """
    said = b""
    with uninterrupted():
        while piece := os.read(0, 100):
            said += piece
    return said != _AT_REST
