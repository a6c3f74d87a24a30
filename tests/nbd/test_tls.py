"""A source that is reached with TLS: by certificates and by pre-shared keys."""

import subprocess
from pathlib import Path

import pytest

from tests.support.model import source_bytes
from tests.support.servers import plugin, refused
from tests.support.sources import daemon

SIZE_BYTES = 2 << 20


def authority(directory: Path) -> Path:
    """A directory with a CA, and a server's certificate for localhost signed by it."""
    directory.mkdir()
    subject = ["-subj", "/CN=relocator test"]
    key = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    openssl(directory, *key, *subject, "-keyout", "ca-key.pem", "-out", "ca-cert.pem")
    made = ["-keyout", "server-key.pem", "-out", "server-cert.pem"]
    names = ["-addext", "subjectAltName=DNS:localhost"]
    names += ["-CA", "ca-cert.pem", "-CAkey", "ca-key.pem"]
    leaf = ["-addext", "basicConstraints=critical,CA:FALSE"]
    openssl(directory, *key, "-subj", "/CN=localhost", *names, *leaf, *made)
    return directory


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


def test_certificates_are_checked(tmp_path: Path) -> None:
    right, wrong = authority(tmp_path / "right"), authority(tmp_path / "wrong")
    with server(tmp_path, "--tls=require", f"--tls-certificates={right}") as source:
        store = f"store={tmp_path / 'store'}"
        uri = f"source=nbds://localhost:{source.port}"
        assert "can't be connected to" in refused(store, uri, f"tls-certificates={wrong}")
        plain = f"source=nbd://localhost:{source.port}"
        assert "can't be connected to" in refused(store, plain)
        assert copies(tmp_path, uri, f"tls-certificates={right}")


def test_require_refuses_a_server_without_encryption(tmp_path: Path) -> None:
    with server(tmp_path, "--tls=off") as source:
        uri = f"source=nbd://localhost:{source.port}"
        assert "can't be connected to" in refused(f"store={tmp_path / 'store'}", uri, "tls=require")
        assert copies(tmp_path, uri, "tls=on")


def test_pre_shared_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys.psk"
    keys.write_text("alice:" + "5a" * 32 + "\n")
    with server(tmp_path, "--tls=require", f"--tls-psk={keys}") as source:
        assert copies(tmp_path, f"source=nbds://alice@localhost:{source.port}", f"tls-psk={keys}")


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
