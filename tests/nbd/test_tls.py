"""A source that is reached with TLS: by certificates and by pre-shared keys."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from relocator import words
from tests.support.model import source_bytes
from tests.support.servers import plugin, refused
from tests.support.sources import daemon

SIZE_BYTES = 2 << 20
_NEW = ("req", "-newkey", "rsa:2048", "-nodes")


_AUTHORITY = """
[ca]
default_ca = test
[test]
database = index.txt
serial = serial
new_certs_dir = .
default_md = sha256
policy = any
copy_extensions = copy
[any]
commonName = supplied
"""
VALID = ("20250101000000Z", "20491231000000Z")
EXPIRED = ("20240101000000Z", "20240201000000Z")
TO_COME = ("20480101000000Z", "20491231000000Z")


def authority(directory: Path, name: str = "localhost", days: tuple[str, str] = VALID) -> Path:
    """A directory with a CA, and a server's certificate for `name` signed by it."""
    directory.mkdir()
    made = ["-keyout", "ca-key.pem", "-out", "ca-cert.pem"]
    openssl(directory, *_NEW, "-x509", "-days", "2", "-subj", "/CN=relocator test", *made)
    sign(directory, "server", name, days)
    return directory


def sign(directory: Path, who: str, name: str, days: tuple[str, str] = VALID) -> None:
    """A certificate `who`-cert.pem for `name`, by the directory's CA."""
    (directory / "index.txt").touch()
    (directory / "serial").write_text("01" if who == "server" else "02")
    (directory / "ca.cnf").write_text(_AUTHORITY)
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    openssl(directory, *_NEW, *names, "-keyout", f"{who}-key.pem", "-out", f"{who}.csr")
    by = ["-config", "ca.cnf", "-cert", "ca-cert.pem", "-keyfile", "ca-key.pem"]
    when = ["-startdate", days[0], "-enddate", days[1]]
    files = ["-in", f"{who}.csr", "-out", f"{who}-cert.pem"]
    openssl(directory, "ca", "-batch", "-notext", *by, *when, *files)


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(
        ["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=60
    )


def server(directory: Path, *flags: str):
    """Our target behind nbdkit's own TLS flags."""
    (directory / "disk.img").write_bytes(source_bytes(SIZE_BYTES))
    path = str(directory / "disk.img")
    return daemon(
        directory, "source", lambda port: ["nbdkit", "-f", "-p", str(port), *flags, "file", path]
    )


def copies(directory: Path, *keys: str) -> bool:
    """Whether a proxy with these keys brings the disk here."""
    with plugin(directory, "proxy", f"store={directory / 'store'}", *keys) as proxy:
        proxy.wait(30)
    return (directory / "store" / "disk.img").read_bytes() == source_bytes(SIZE_BYTES)


def says(directory: Path, source: Any, certificates: Path | None, *, tls: bool = True) -> str:
    """What a proxy is refused with, which trusts the CA of `certificates`."""
    uri = f"source={'nbds' if tls else 'nbd'}://localhost:{source.port}"
    keys = () if certificates is None else (f"tls-certificates={certificates}",)
    return refused(f"store={directory / 'store'}", uri, *keys)


def encrypted(directory: Path, certificates: Path, *flags: str) -> Any:
    return server(directory, "--tls=require", f"--tls-certificates={certificates}", *flags)


def test_who_is_trusted_is_served_and_who_comes_in_clear_is_not(tmp_path: Path) -> None:
    right, wrong = authority(tmp_path / "right"), authority(tmp_path / "wrong")
    with encrypted(tmp_path, right) as source:
        assert "certificate is not from" in says(tmp_path, source, wrong)
        assert "takes encrypted connections only" in says(tmp_path, source, None, tls=False)
        assert "libnbd believes any certificate" in says(tmp_path, source, None)
        uri = f"source=nbds://localhost:{source.port}"
        assert copies(tmp_path, uri, f"tls-certificates={right}")


@pytest.mark.parametrize(
    ("name", "days", "message"),
    [
        ("localhost", EXPIRED, "the source's certificate has expired"),
        ("localhost", TO_COME, "is not valid yet; are the clocks right?"),
        ("other.example", VALID, "is for another name than localhost"),
    ],
)
def test_what_is_wrong_with_a_certificate_is_told(
    tmp_path: Path, name: str, days: tuple[str, str], message: str
) -> None:
    wrong = authority(tmp_path / "wrong", name, days)
    with encrypted(tmp_path, wrong) as source:
        assert message in says(tmp_path, source, wrong)


def test_a_source_that_asks_for_certificates_takes_none_but_its_own(tmp_path: Path) -> None:
    right, wrong = authority(tmp_path / "right"), authority(tmp_path / "wrong")
    with encrypted(tmp_path, right, "--tls-verify-peer") as source:
        assert "the source may want a certificate of ours" in says(tmp_path, source, right)
        sign(right, "client", "client")
        sign(wrong, "client", "client")
        mixed = tmp_path / "mixed"
        mixed.mkdir()
        (mixed / "ca-cert.pem").write_bytes((right / "ca-cert.pem").read_bytes())
        for file in ("client-cert.pem", "client-key.pem"):
            (mixed / file).write_bytes((wrong / file).read_bytes())
        assert "doesn't accept our certificate" in says(tmp_path, source, mixed)
        uri = f"source=nbds://localhost:{source.port}"
        assert copies(tmp_path, uri, f"tls-certificates={right}")


def test_require_refuses_a_server_without_encryption(tmp_path: Path) -> None:
    right = authority(tmp_path / "right")
    with server(tmp_path, "--tls=off") as source:
        assert "the source doesn't encrypt" in says(tmp_path, source, right)
        assert copies(tmp_path, f"source=nbd://localhost:{source.port}", "tls=on")


def test_pre_shared_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:" + "5a" * 32 + "\n")
    with server(tmp_path, "--tls=require", f"--tls-psk={keys}") as source:
        uri = f"source=nbds://alice@localhost:{source.port}"
        other = tmp_path / "other.psk"
        other.write_text("alice:" + "5b" * 32 + "\n")
        said = refused(f"store={tmp_path / 'store'}", uri, f"tls-psk={other}")
        assert "another pre-shared key" in said
        nobody = f"source=nbds://localhost:{source.port}"
        said = refused(f"store={tmp_path / 'store'}", nobody, f"tls-psk={keys}")
        assert f"write nbds://USER@HOST, where USER is the name before a key in {keys}" in said
        assert copies(tmp_path, uri, f"tls-psk={keys}")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["source=nbd://h", "tls-psk=/etc/hostname"], "tls-psk: needs tls=require"),
        (["source=nbds://h", "tls=on"], "tls=on: contradicts the nbds:// source"),
        (["source=nbds://h", "tls-psk=/nowhere"], "tls-psk=/nowhere: there is no such file"),
        (["source=nbds://h", "tls-certificates=/"], "must be a directory with ca-cert.pem"),
        (["source=ssh://h", "tls=require"], "tls: not with an ssh:// source"),
        (["source=nbd://h", "ssh-options=-v"], "ssh-options: is for an ssh:// source"),
        (["source=ssh://h?prot=1"], "'prot' is unknown"),
        (["source=nbd://h", "connections=1"], "must be auto or a number from 2"),
        (["source=nbd://h", "demand=both"], "demand=both: must be one of own, shared"),
    ],
)
def test_what_does_not_go_together_is_refused(keys: list[str], message: str) -> None:
    assert message in refused("store=/tmp/relocator-none", *keys)


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("nbds://alice:open-sesame@h", "nbds://alice:...@h"),
        ("nbd://alice:open-sesame@h:0/disk", "nbd://alice:...@h:0/disk"),
        ("nbds://alice:open/sesame?@[::1]", "nbds://alice:...@[::1]"),
        ("nbds+unix://alice:open-sesame@/?socket=/s", "nbds+unix://alice:...@/?socket=/s"),
        ("ssh://alice:open-sesame@h", "ssh://alice:...@h"),
        ("iscsi://alice:open-sesame@h/iqn.x/1", "iscsi://alice:...@h/iqn.x/1"),
    ],
)
def test_a_password_in_a_source_is_refused_and_not_shown(source: str, shown: str) -> None:
    said = refused("store=/tmp/relocator-none", f"source={source}")
    assert f"source={shown}: " in said and "sesame" not in said
    if "/sesame" not in source:  # where a / ends the host, what follows it could be a name
        assert "holds a password, which ps, the status and the logs would show; leave" in said


@pytest.mark.parametrize(
    "uri", ["nbd://h:10809/a@b", "nbds://alice@h:1/a:b@c", "nbd://[::1]:1/a@b"]
)
def test_what_is_no_password_is_shown(uri: str) -> None:
    assert words.without_password(uri) == uri
