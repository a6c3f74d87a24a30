"""How a disk is served to iSCSI initiators.

An NBD server stays what serves the disk; what is started here only speaks iSCSI in front of it:

    tgt     initiator - tgtd - FUSE (nbdfuse) - qemu-nbd - NBD server     needs no kernel module
    kernel  initiator - LIO  - /dev/nbdN (qemu-nbd)      - NBD server     faster

Neither keeps anything of the disk's content: tgtd reads and writes past the page cache (O_DIRECT),
and LIO's iblock knows none. Otherwise what was read in standby would be believed after the switch.
A flush (SYNCHRONIZE CACHE) goes all the way. In both ways a server that is killed and comes back at
its address within `patience_s` costs the initiator a pause, and no error: qemu-nbd, or the kernel,
asks again.

Initiators are not offered to discard blocks: SCSI promises zeros afterwards, NBD doesn't.

A LUN's identity follows from its target's name, so that the same name at two sites is the same disk
to an initiator, and two disks are never taken for two paths to one.

`lun` says what is to be served, `tgt` and `kernel` how; both are context managers that end what
they started. Neither has threads.
"""
