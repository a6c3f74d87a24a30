"""Threads that do one thing and end; nobody waits for them at the end of the process."""

import threading
from collections.abc import Callable


def start(name: str, job: Callable[..., None], *arguments: object) -> threading.Thread:
    """Let a thread of this name do the job, from now on."""
    thread = threading.Thread(target=job, args=arguments, name=name, daemon=True)
    thread.start()
    return thread
