"""Where a source is and how it may be spoken to: everything that opening a connection needs.

One value is handed to whoever connects, for data and for control alike, so that no connection can
forget the encryption. Pure: nothing is opened here.

    nbd://HOST[:PORT][/EXPORT]                  TCP
    nbds://[USER@]HOST[:PORT][/EXPORT]          TCP, encrypted or not at all
    nbd+unix:///[EXPORT]?socket=PATH            Unix socket; nbds+unix likewise
    ssh://[USER@]HOST[:PORT][/EXPORT][?port=N]  through ssh to port N of HOST's loopback
    iscsi://[USER@]HOST[:PORT]/IQN/LUN          a LUN, through qemu-nbd

Where a LUN wants a password, libiscsi takes it from LIBISCSI_CHAP_PASSWORD: a URI is seen by all.
A LUN has no exports. The fragment of its URI stands for the export's name, and is sent to nobody
but the qemu-nbd of that connection, which knows only the unnamed one.
"""

import re
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import SplitResult, parse_qs, quote, unquote, urldefrag, urlsplit

from relocator import words
from relocator.source.key import Key

SCHEMES = ("nbd", "nbds", "nbd+unix", "nbds+unix", "ssh", "iscsi")
#: What is encrypted, or not, by other means than NBD's TLS.
TUNNELLED = ("ssh", "iscsi")
TLS = ("off", "on", "require")
NBD_PORT = 10809
_SSH_QUERY = {"port", "socket", "compression"}
#: ssh takes the first value it meets for an option, so what the operator gives goes before these.
_SSH_DEFAULTS = (
    "BatchMode=yes",  # nobody is there to type a password
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=2",
    "ControlPath=none",  # a connection of its own, or demand would queue behind background
)


@dataclass(frozen=True)
class Endpoint:
    """A source's URI, and the secrets and options that go with it.

    `tls` is `off`, `on` (encrypt if the server can), `require`, or None: what the URI says. `key`
    is proven to a server that asks for it, for any `further` export than the disk itself.
    """

    uri: str
    tls: str | None = None
    certificates: Path | None = None
    psk: Path | None = None
    ssh_options: tuple[str, ...] = ()
    key: Key | None = None
    further: bool = False

    @property
    def scheme(self) -> str:
        """The URI's scheme."""
        return urlsplit(self.uri).scheme

    @property
    def encryption(self) -> str:
        """`off`, `on` or `require`."""
        return self.tls or ("require" if self.scheme.startswith("nbds") else "off")

    @property
    def export(self) -> str:
        """The export's name; empty for the default one."""
        parts = urlsplit(self.uri)
        return unquote(parts.fragment if self._is_lun else parts.path.removeprefix("/"))

    @property
    def _is_lun(self) -> bool:
        return self.scheme == "iscsi"

    def with_export(self, name: str) -> "Endpoint":
        """The same server's further export `name`."""
        if self._is_lun:
            return replace(self, uri=f"{urldefrag(self.uri).url}#{quote(name)}", further=True)
        parts = urlsplit(self.uri)  # urlunsplit would drop the empty host of nbd+unix:///
        query = f"?{parts.query}" if parts.query else ""
        uri = f"{parts.scheme}://{parts.netloc}/{quote(name)}{query}"
        return replace(self, uri=uri, further=True)

    @property
    def server(self) -> str:
        """The URI as a message has it: a further export may be named by a seal, which is secret."""
        return self.with_export("").uri.rstrip("#/") if self.further else self.uri

    def problem(self) -> str | None:
        """What is wrong with the URI or doesn't go together, as the end of a line; None if fine."""
        parts = words.uri(self.uri)
        if parts is None or parts.scheme not in SCHEMES:
            return (
                "not an NBD URI; write nbd://HOST[:PORT][/EXPORT], "
                "nbd+unix:///[EXPORT]?socket=PATH, ssh://[USER@]HOST[/EXPORT] or "
                "iscsi://HOST[:PORT]/IQN/LUN"
            )
        if problem := _password_problem(parts):
            return problem
        if parts.scheme.endswith("+unix"):
            return None if "socket=/" in parts.query else "needs ?socket= with an absolute path"
        if not words.has_port(parts):
            return "its port is not a number from 1 to 65535"
        if not parts.hostname or parts.hostname.startswith("-"):
            return f"names no host and port; write {parts.scheme}://HOST[:PORT]"
        if parts.scheme == "iscsi" and not re.fullmatch(r"/[^/]+/\d+", parts.path):
            return "names no LUN; write iscsi://HOST[:PORT]/IQN/LUN"
        return _ssh_problem(parts.query) if parts.scheme == "ssh" else None

    def conflict(self) -> str | None:
        """What doesn't go together, such as keys for a connection that isn't encrypted, or None."""
        scheme, tls = self.scheme, self.tls
        keys = "tls-certificates" if self.certificates else "tls-psk" if self.psk else None
        if scheme in TUNNELLED and (tls or keys):
            why = "ssh encrypts already" if scheme == "ssh" else "iSCSI knows no TLS; use IPsec"
            return f"{keys or 'tls'}: not with an {scheme}:// source; {why}"
        if scheme != "ssh" and self.ssh_options:
            return "ssh-options: is for an ssh:// source"
        if scheme.startswith("nbds") and tls in ("off", "on"):
            return f"tls={tls}: contradicts the {scheme}:// source; leave it out"
        if keys and self.encryption == "off":
            return f"{keys}: needs tls=require (or on), or an nbds:// source"
        if self.certificates and self.psk:
            return "tls-psk: excludes tls-certificates; give one of them"
        if self.encryption == "require" and not keys:
            return (
                f"{scheme}:// with TLS: needs tls-certificates=DIR (with ca-cert.pem) or "
                "tls-psk=FILE; without, libnbd believes any certificate"
            )
        return None

    def ssh_command(self) -> list[str]:
        """The ssh that carries one connection on its stdin and stdout."""
        parts = urlsplit(self.uri)
        query = _query(parts.query)
        compression = query.get("compression", "yes")
        options = [*_SSH_DEFAULTS, f"Compression={compression}"]
        argv = ["ssh", *self.ssh_options, *(f"-o{option}" for option in options)]
        argv += ["-p", str(parts.port)] if parts.port else []
        argv += ["-l", unquote(parts.username)] if parts.username else []
        host = parts.hostname or ""
        if "socket" in query:  # -W takes only a host and port, so a program there must pass it on
            path = shlex.quote(query["socket"])
            relays = f"nc -U {path} || exec socat - UNIX-CONNECT:{path}"
            return [*argv, "-T", "--", host, f"command -v nc >/dev/null && exec {relays}"]
        target = f"localhost:{query.get('port', NBD_PORT)}"
        return [*argv, "-W", target, "--", host]

    def iscsi_command(self) -> list[str]:
        """The qemu-nbd that serves the LUN to one connection, on a socket that it inherits."""
        return ["qemu-nbd", "--read-only", "--format=raw", urldefrag(self.uri).url]


def _password_problem(parts: SplitResult) -> str | None:
    """What is wrong with a URI that holds a password: all who see the process's arguments see it.

    An iSCSI user's stands behind a %, as libiscsi has it.
    """
    is_lun = parts.scheme == "iscsi"
    if parts.password is None and not (is_lun and "%" in parts.netloc.rpartition("@")[0]):
        return None
    if parts.scheme == "ssh":
        return words.HOLDS_PASSWORD
    if is_lun:
        right = "leave %PASSWORD out and give it by the environment, as LIBISCSI_CHAP_PASSWORD"
    else:
        right = "leave :PASSWORD out, and give a secret by tls-psk=FILE (the user is the URI's)"
    return f"{words.SHOWS_PASSWORD}; {right}"


def _query(text: str) -> dict[str, str]:
    return {key: values[-1] for key, values in parse_qs(text, keep_blank_values=True).items()}


def _ssh_problem(text: str) -> str | None:
    query = _query(text)
    if unknown := sorted(query.keys() - _SSH_QUERY):
        return f"'{unknown[0]}' is unknown; there are: port, socket, compression"
    if "port" in query and "socket" in query:
        return "port= and socket= exclude each other"
    if not query.get("socket", "/").startswith("/"):
        return "socket= needs an absolute path"
    port = query.get("port", "1")
    if not 0 < (words.whole(port) or 0) < 65536:
        return f"port={port} is not a number from 1 to 65535"
    if query.get("compression", "yes") not in ("yes", "no"):
        return "compression= must be yes or no"
    return None
