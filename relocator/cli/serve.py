"""`relocator target` and `relocator proxy`: check the parameters, then become nbdkit.

The command replaces itself with nbdkit, so signals, exit status and supervision are nbdkit's own.
Parameters are checked here first, for an error with the option's name and exit status 2.
"""

import argparse
import os
import shlex
from pathlib import Path

from relocator import config
from relocator.cli.common import Commands
from relocator.errors import ConfigError, RelocatorError

PLUGIN = Path(__file__).resolve().parent.parent / "plugin.py"
DEFAULT_PORT = 10809
#: nbdkit's threads a connection. A proxy's requests may wait for the WAN, so many before others
#: must wait too. A target's never do; one is fastest (threads hand the interpreter around), and
#: nbdkit before 1.34 can abort if a client hangs up while several threads owe it replies.
PROXY_THREADS = 16
TARGET_THREADS = 1

_TARGET_KEYS = (
    ("control", "PATH", "Unix socket for status and verbs"),
    ("store", "DIR", "keep the maps here, so that a seal and an epoch survive a restart"),
    ("block", "SIZE", "unit of the maps (4K)"),
)
_PROXY_KEYS = (
    ("control", "PATH", "Unix socket for status and verbs"),
    ("disk", "PATH", "image or block device of the copy (STORE/disk.img)"),
    ("mode", "active|standby", "whether the VM has stopped at the source already (active)"),
    ("activate-on-write", "no|yes", "in standby, the first write activates (no)"),
    ("background", "on|off", "copy everything in the background (on)"),
    ("order", "LIST", f"order of the background copy: {', '.join(config.ORDERS)}"),
    ("skip-free", "no|yes", "never copy what ext2/3/4 call free (no)"),
    ("readahead", "SIZE|auto", "most bytes fetched ahead of a sequential reader (auto)"),
    ("rate", "BITS/S", "cap of the background copy, such as 50M (none)"),
    ("window", "BYTES", "bytes in flight, such as 1M, or auto: what fills the link (auto)"),
    ("block", "SIZE", "unit of the maps (4K)"),
    ("retry-timeout", "S", "how long an absent read waits for a lost source (60)"),
    ("connections", "N", "connections to the source, one of them for demand (2)"),
    ("tls", "off|on|require", "encrypt: on, if the source can; require, or refuse (off)"),
    ("tls-certificates", "DIR", "ca-cert.pem, and client-cert.pem and client-key.pem if needed"),
    ("tls-psk", "FILE", "pre-shared keys instead of certificates"),
    ("ssh-options", "WORDS", "further options for ssh, for an ssh:// source"),
)


def add(commands: Commands) -> None:
    """Add both commands' parsers."""
    target = commands.add_parser(
        "target", help="serve a disk that is all here", description="Serve a disk over NBD."
    )
    target.add_argument("disk", metavar="DISK", help="image file or block device")
    _add_common(target, _TARGET_KEYS, TARGET_THREADS)
    target.set_defaults(run=_run, positionals=("disk",), keys=_TARGET_KEYS)
    proxy = commands.add_parser(
        "proxy",
        help="serve a disk that is still at another site, and bring it here",
        description="Serve a disk over NBD while it is copied from its source.",
    )
    proxy.add_argument("store", metavar="STORE", help="directory of the local copy")
    proxy.add_argument(
        "source", metavar="SOURCE", nargs="?", help="NBD URI of the source; none once complete"
    )
    _add_common(proxy, _PROXY_KEYS, PROXY_THREADS)
    proxy.set_defaults(run=_run, positionals=("store", "source"), keys=_PROXY_KEYS)


def _add_common(
    parser: argparse.ArgumentParser, keys: tuple[tuple[str, str, str], ...], threads: int
) -> None:
    listen = parser.add_mutually_exclusive_group()
    listen.add_argument(
        "--listen",
        metavar="HOST:PORT",
        default=f"127.0.0.1:{DEFAULT_PORT}",
        help="address to serve on (127.0.0.1:10809)",
    )
    listen.add_argument("--socket", metavar="PATH", help="serve on a Unix socket instead")
    for key, metavar, text in keys:
        parser.add_argument(f"--{key}", metavar=metavar, help=text)
    parser.add_argument(
        "--threads",
        type=int,
        default=threads,
        metavar="N",
        help=f"requests of a connection served at once ({threads})",
    )
    parser.add_argument("--detach", metavar="PIDFILE", help="go into the background")
    parser.add_argument("--print", action="store_true", help="only print nbdkit's command line")


def command_line(options: argparse.Namespace) -> list[str]:
    """nbdkit's command line for the given options.

    Raises:
        ConfigError: a parameter is wrong.
    """
    names = [*options.positionals, *(key for key, _, _ in options.keys)]
    values = {name: getattr(options, name.replace("-", "_")) for name in names}
    pairs = {name: value for name, value in values.items() if value is not None}
    config.parse(pairs)
    if options.threads < 1:
        raise ConfigError(f"--threads={options.threads}: must be at least 1")
    argv = ["nbdkit", "--threads", str(options.threads)]
    argv += ["--pidfile", options.detach] if options.detach else ["--foreground"]
    argv += ["--unix", options.socket] if options.socket else _listen_flags(options.listen)
    return [*argv, "python", str(PLUGIN), *(f"{name}={value}" for name, value in pairs.items())]


def _listen_flags(text: str) -> list[str]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"--listen={text}: not HOST:PORT; write 127.0.0.1:{DEFAULT_PORT}")
    return ["--port", port, *(["--ipaddr", host.strip("[]")] if host else [])]


def _run(options: argparse.Namespace) -> int:
    argv = command_line(options)
    if options.print:
        print(shlex.join(argv))
        return 0
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise RelocatorError(f"nbdkit can't be started: {error.strerror}; see doctor") from error
