"""The operator: verbs on a control socket, each in a process of its own, so that nobody waits."""

import json
import os
from pathlib import Path
from typing import Any

from relocator.client import Client
from relocator.errors import RelocatorError

PATIENCE_S = 30.0


class Call:
    """A verb on its way; `answer` is None until `done`, then the status or {"error": why}."""

    def __init__(self, control: Path, verb: str, **arguments: Any) -> None:
        self.verb = verb
        self.answer: dict[str, Any] = {}
        self._pipe, end = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                answer = Client(control).call(verb, PATIENCE_S, **arguments)
            except RelocatorError as error:
                answer = {"error": str(error)}
            except BaseException as error:
                answer = {"error": repr(error)}
            with os.fdopen(end, "w") as file:
                json.dump(answer, file)
            os._exit(0)
        os.close(end)

    def done(self) -> bool:
        """Whether it has been answered."""
        if self._pid:
            if os.waitpid(self._pid, os.WNOHANG)[0] == 0:
                return False
            self._pid = 0
            with os.fdopen(self._pipe) as file:  # at most a pipe's buffer, 64 KiB
                self.answer = json.loads(file.read() or '{"error": "killed"}')
        return True

    @property
    def error(self) -> str | None:
        """Why it was refused or failed, once done."""
        return self.answer.get("error") if self._failed else None

    @property
    def _failed(self) -> bool:
        return set(self.answer) == {"error"}
