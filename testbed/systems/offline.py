"""Offline copy: the guest stands still while nbdcopy copies its disk."""

from testbed.systems.base import System


class Offline(System):
    """nbdcopy while the guest stands still, then `nbdkit file` on the copy."""

    name = "offline"
    has_all = True

    def prepare(self) -> None:
        self.serve_empty_image()

    def hand_over(self) -> None:
        # The copy goes into the file that the server has open: it keeps nothing of its own.
        command = ["nbdcopy", "--destination-is-zero", self.source_uri, str(self.image)]
        self.place.run_at_destination(command)
