"""Telling a service manager that this process serves (sd_notify(3), `Type=notify`)."""

import os
import socket
from contextlib import suppress


def notify() -> None:
    """Say that clients may come, if somebody wants to know; nobody's failure stops us."""
    path = os.environ.get("NOTIFY_SOCKET")
    if path:
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.sendto(b"READY=1", "\0" + path[1:] if path.startswith("@") else path)
