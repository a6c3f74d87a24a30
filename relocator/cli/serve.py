"""`relocator target` and `relocator proxy`: check the parameters, then become nbdkit.

The command replaces itself with nbdkit, so signals, exit status and supervision are nbdkit's own
(but for `--graduate`, which changes the server: see graduate.py).
Parameters are checked here first, for an error with the option's name and exit status 2.
"""

import argparse
import shlex
from pathlib import Path

from relocator import config
from relocator.cli import launch
from relocator.cli.common import Commands
from relocator.cli.listening import add_address, address_of, inherit
from relocator.cli.plugin_path import PLUGIN
from relocator.errors import ConfigError

#: nbdkit's threads a connection. A proxy's requests may wait for the WAN, so many before others
#: must wait too. A target's never do; one is fastest (threads hand the interpreter around), and
#: nbdkit before 1.34 can abort if a client hangs up while several threads owe it replies.
PROXY_THREADS = 16
TARGET_THREADS = 1

_TARGET_KEYS = (
    ("control", "PATH", "Unix socket for status and verbs"),
    ("key", "PATH", "secret of both sites (`relocator keygen`); needed if other machines connect"),
    ("store", "DIR", "keep the maps here, so that a seal and an epoch survive a restart"),
    ("block", "SIZE|auto", "unit of the maps; auto: 4K up to 2 TiB, then more (auto)"),
    ("recent", "N", "how many places read last are remembered, 0 for none (1048576)"),
)
_PROXY_KEYS = (
    ("control", "PATH", "Unix socket for status and verbs"),
    ("key", "PATH", "secret of both sites (`relocator keygen`); needed if other machines connect"),
    ("disk", "PATH", "image or block device of the copy (STORE/disk.img)"),
    ("mode", "active|standby", "whether the VM has stopped at the source already (active)"),
    ("activate-on-write", "no|yes", "in standby, the first write activates (no)"),
    ("background", "on|off", "copy everything in the background (on)"),
    ("order", "LIST", f"order of the background copy: {', '.join(config.ORDERS)}"),
    ("pull-forward", "yes|no", "copy next what lies around a block that the guest misses (yes)"),
    ("skip-free", "no|yes", "never copy what ext2/3/4 call free (no)"),
    ("readahead", "SIZE|auto", "most bytes fetched ahead of a sequential reader (auto)"),
    ("seal-brings", "SIZE|auto", "what may come with the seal; auto: a round trip's worth (auto)"),
    ("rate", "RATE|TIMETABLE", "cap, such as 50M, or by the hour: '07:00,20M 23:30,none' (none)"),
    ("rate-group", "PATH", "share one cap, --rate, with the host's other proxies that give it"),
    ("finish-by", "TIME", "be complete then, no faster than needed: HH:MM or YYYY-MM-DDTHH:MM"),
    ("window", "BYTES", "bytes in flight, such as 1M, or auto: what fills the link (auto)"),
    ("block", "SIZE|auto", "unit of the maps; auto: the source's, or what suits the size (auto)"),
    ("recent", "N", "how many places read last are remembered, 0 for none (1048576)"),
    ("seed", "PATH,...", "raw images here that may hold the same content, such as a template"),
    ("seed-rate", "BITS/S", "most that the source reads and hashes for them (2G)"),
    ("refresh", "S|off", "in standby, seconds until what was written is copied again (5)"),
    ("source-bitmap", "NAME", "a dirty bitmap of a QEMU source: what is not in it is copied ahead"),
    ("retry-timeout", "S", "how long an absent read waits for a lost source (60)"),
    ("connections", "N|auto", "to the source, one of them for demand; auto: 2, 13 if far (auto)"),
    ("demand", "own|shared", "a connection of its own for what the guest waits for, or none (own)"),
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
    target.set_defaults(graduate=False, run=_run, positionals=("disk",), keys=_TARGET_KEYS)
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
    proxy.add_argument(
        "--graduate",
        action="store_true",
        help="once complete, give the disk to a plain `nbdkit file` at the same address: faster, "
        "but writes are no longer recorded; clients must reconnect by themselves",
    )
    proxy.set_defaults(run=_run, positionals=("store", "source"), keys=_PROXY_KEYS)


def _add_common(
    parser: argparse.ArgumentParser, keys: tuple[tuple[str, str, str], ...], threads: int
) -> None:
    add_address(parser)
    for key, metavar, text in keys:
        parser.add_argument(f"--{key}", metavar=metavar, help=text)
    parser.add_argument(
        "--threads",
        type=int,
        default=threads,
        metavar="N",
        help=f"requests of a connection served at once ({threads})",
    )
    parser.add_argument(
        "--nbdkit-options",
        metavar="WORDS",
        default="",
        help="further options for nbdkit, such as --tls=require, quoted as for a shell",
    )
    parser.add_argument("--detach", metavar="PIDFILE", help="go into the background")
    parser.add_argument("--print", action="store_true", help="only print nbdkit's command line")


def command_line(options: argparse.Namespace) -> list[str]:
    """nbdkit's command line for the given options.

    Raises:
        ConfigError: a parameter is wrong.
    """
    arguments = _plugin(options)
    how = ["--pidfile", options.detach] if options.detach else ["--foreground"]
    address = address_of(options)
    if address.congestion is None:
        return [*_nbdkit(options), *how, *address.flags(), *arguments]
    for option in ("detach", "print"):
        if getattr(options, option):
            raise ConfigError(f"--{option}: not with --congestion: nbdkit inherits the sockets")
    return [*_nbdkit(options), *how, *arguments]


def _nbdkit(options: argparse.Namespace) -> list[str]:
    if options.threads < 1:
        raise ConfigError(f"--threads={options.threads}: must be at least 1")
    try:
        further = shlex.split(options.nbdkit_options)
    except ValueError as error:
        raise ConfigError(f"--nbdkit-options={options.nbdkit_options}: {error}") from error
    return ["nbdkit", "--threads", str(options.threads), *further]


def _plugin(options: argparse.Namespace) -> list[str]:
    """The plugin with its parameters, which are checked."""
    names = [*options.positionals, *(key for key, _, _ in options.keys)]
    values = {name: getattr(options, name.replace("-", "_")) for name in names}
    pairs = {name: value for name, value in values.items() if value is not None}
    config.parse(pairs)
    return ["python", str(PLUGIN), *(f"{name}={value}" for name, value in pairs.items())]


def _graduate(options: argparse.Namespace) -> int:
    """`--graduate`: two servers, one after the other, which inherit their sockets.

    Imported here, for what knows a graduated store needs `nbd`, and no other command does.
    """
    from relocator.cli import graduate

    if options.detach:
        raise ConfigError("--detach: not with --graduate, which stays to change the server")
    store = Path(options.store).absolute()
    if options.control is None:
        options.control = str(store / "control")
    nbdkit = [*_nbdkit(options), "--foreground"]
    disk = None if options.disk is None else Path(options.disk).absolute()
    control = Path(options.control).absolute()
    plan = graduate.Plan(address_of(options), nbdkit, _plugin(options), store, disk, control)
    if options.print:
        print(launch.shell_line(plan.proxy))
        return 0
    return graduate.supervise(plan)


def _run(options: argparse.Namespace) -> int:
    if options.graduate:
        return _graduate(options)
    argv = command_line(options)
    if not options.print:
        address = address_of(options)
        if options.congestion is None:
            address.check()
        else:
            sockets = address.listen()  # the name keeps them open until nbdkit is there
            inherit(sockets, ())
        launch.become(argv)
    print(launch.shell_line(argv))
    return 0
