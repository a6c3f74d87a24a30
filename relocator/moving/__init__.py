"""A QEMU guest moves with its disks: memory by QEMU's own migration, disks by ours, as one move.

A move is a walk through the stages of `stages.py`. Where it stands is never written down: it is
*found*, from what both QEMUs and both ends of each disk say, so a move that was interrupted at any
place is gone on with, or undone, by looking again.

What holds at every moment: at most one side can write to the disks. Until these are released, the
destination's writes wait in its proxies, acknowledged to nobody, so the guest can still go back.
The release is sent only once the destination runs and every source has confirmed its seal; from
then on there is no way but forward. Whoever can't be reached can't break that: a proxy that is
held stays held, a source that is sealed stays sealed.

    address, reach   how QMP and control sockets are named, also through ssh, and reached
    monitor          one QEMU, by QMP; nothing else imports qemu.qmp
    ends             a disk's two ends
    seen, stages     what is found, and what follows from it: pure data
    steps, move      what is done in each; the loop over them
    telling          what a move tells, and whom
    agent, freezing  the guest's agent, and when it freezes and thaws the guest
    guard            what is done if the process that moves a guest is killed
    trial, still     throwaway copies; the guest that stands still for their last blocks
    downtime         the parts of the pause, from the events
"""
