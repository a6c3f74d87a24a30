"""Who lets a guest stand still has all made ready before, and says one word."""

import time
from pathlib import Path

import pytest

from relocator.client import Client
from relocator.errors import RelocatorError
from tests.nbd.test_activation import Source, standby, state
from tests.support.servers import wait_for


def test_what_is_armed_waits_for_the_word_and_then_seals_at_once(tmp_path: Path) -> None:
    source = Source(tmp_path)
    with source.serve() as target, standby(tmp_path, target) as proxy:
        client = Client(proxy.control_path)
        assert client.call("activate", hold=True, seal=False)["held"]
        client.connect()
        time.sleep(0.5)
        assert (state(proxy), source.sealed) == ("activating", False)
        assert client.call("activate", hold=True, status=False) == {"already_active": False}
        wait_for(lambda: source.sealed, "the seal")
        client.call("withdraw")
        assert (state(proxy), source.sealed) == ("standby", False)
        client.call("activate", hold=True, seal=False)
        time.sleep(0.5)
        assert (state(proxy), source.sealed) == ("activating", False)  # the first word is not its
        client.call("withdraw")
        assert (state(proxy), source.sealed) == ("standby", False)


def test_a_connection_made_before_is_made_anew_if_the_plugin_hung_up(tmp_path: Path) -> None:
    source = Source(tmp_path)
    with source.serve() as target:
        with standby(tmp_path, target) as proxy:
            client = Client(proxy.control_path)
            client.connect()
            proxy.kill()
        with pytest.raises(RelocatorError, match=r"refused.*is the plugin running"):
            client.call("status")
        with standby(tmp_path, target) as proxy:
            client.connect()
            proxy.kill()
        with standby(tmp_path, target):
            assert client.call("status")["state"] == "standby"
