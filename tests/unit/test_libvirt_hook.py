"""Which disks of a domain libvirt's hook takes for ours."""

from pathlib import Path

import pytest

from relocator.cli.libvirt import configurations, disks_of
from relocator.errors import RelocatorError

DOMAIN = """
<domain type='kvm'><name>vm1</name><devices>
  <disk type='network'><source protocol='nbd'><host name='127.0.0.1' port='10809'/></source></disk>
  <disk type='network'><source protocol='nbd'><host name='localhost' port='10811'/></source></disk>
  <disk type='network'><source protocol='nbd'><host name='10.1.0.9' port='10812'/></source></disk>
  <disk type='network'><source protocol='rbd'><host name='127.0.0.1' port='10812'/></source></disk>
  <disk type='file'><source file='/srv/other.img'/></disk>
</devices></domain>
"""


def test_disks_are_ours_by_the_port_that_a_configuration_serves(tmp_path: Path) -> None:
    for name, listen in (
        ("root", "0.0.0.0:10809"),
        ("data", "'[::1]:10811'"),
        ("elsewhere", "0.0.0.0:10812"),
        ("unfinished", ""),
    ):
        (tmp_path / f"{name}.conf").write_text(f"# LISTEN=h:1\nDISK=/d\nLISTEN={listen}\n")
    served, unread = configurations(tmp_path)
    assert (served, unread) == ({10809: "root", 10811: "data", 10812: "elsewhere"}, [])
    assert list(disks_of(DOMAIN, served)) == ["root", "data"]


def test_of_two_settings_the_last_counts_as_it_does_for_systemd(tmp_path: Path) -> None:
    (tmp_path / "root.conf").write_text("LISTEN=0.0.0.0:10810\nDISK=/d\nLISTEN=0.0.0.0:10809\n")
    served, _ = configurations(tmp_path)
    assert list(disks_of(DOMAIN, served)) == ["root"]


def test_a_file_that_can_not_be_read_is_named_and_keeps_nobody_else(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "latin.conf").write_bytes(b"# gr\xf6\xdfer\nLISTEN=127.0.0.1:10809\n")
    (tmp_path / "gone.conf").symlink_to("/nowhere")
    served, unread = configurations(tmp_path)
    assert served == {10809: "latin"}
    assert unread == [f"{tmp_path}/gone.conf can't be read: No such file or directory"]
    assert f"warning: {unread[0]}" in capfd.readouterr().err
    assert list(disks_of("<domain/>", served, unread)) == []
    with pytest.raises(RelocatorError, match=r"port 10811, may be ours: .*gone\.conf can"):
        list(disks_of(DOMAIN, served, unread))


def test_what_is_no_domain_is_an_error() -> None:
    with pytest.raises(RelocatorError, match="libvirt's description of the guest"):
        list(disks_of("<domain>", {}))
