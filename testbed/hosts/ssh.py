"""An sshd of one's own, and what its client must know: keys that are made for it and end with it.

Nothing of the machine's own sshd or of anybody's ~/.ssh is read or written.
"""

from pathlib import Path

from testbed.hosts.supervise import run

SSHD = "/usr/sbin/sshd"  # it wants to be called by its full path


def keys(directory: Path) -> str:
    """Host and user key, and sshd.conf; returns ssh's options. The host is yet to be made known
    (`known`)."""
    for name in ("host", "user"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)])
    (directory / "authorized").write_text((directory / "user.pub").read_text())
    (directory / "sshd.conf").write_text(
        f"HostKey {directory / 'host'}\nAuthorizedKeysFile {directory / 'authorized'}\n"
        f"PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin prohibit-password\n"
    )
    return (
        f"-F none -i {directory / 'user'} -o UserKnownHostsFile={directory / 'known'} "
        "-o StrictHostKeyChecking=yes"
    )


def known(directory: Path, address: str, port: int) -> None:
    """From now on the client believes that this host is there."""
    host = (directory / "host.pub").read_text()
    (directory / "known").write_text(f"[{address}]:{port} {host}")


def sshd_command(directory: Path, address: str, port: int) -> list[str]:
    """The server, in the foreground."""
    Path("/run/sshd").mkdir(exist_ok=True)  # it insists
    where = ["-o", f"ListenAddress={address}", "-p", str(port)]
    return [SSHD, "-D", "-e", "-f", str(directory / "sshd.conf"), *where]
