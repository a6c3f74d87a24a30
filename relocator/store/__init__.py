"""What of a disk is here: the image, the maps that say which of its blocks are valid, the metadata.

Promises: after a killed process every acknowledged write is there, after a power failure every
flushed one, and no block is believed whose data is not.

    store       the crash rule; present, dirty and diverged blocks; commit -> Store
    maps        the live and the durable copy of the bits
    bitmap      one bit a block                                            -> Bitmap
    meta        what a disk knows of itself                                -> Meta, Base
    image       the bytes                                                  -> Image
    locks       who else may write the image: another of ours, a QEMU
    geometry    bytes and blocks; where a request is split                 -> Geometry, Extent
    opening     what is checked before a byte is believed                  -> open_store
    formats     whether an image looks like one that is not raw
    runs        a bitmap on the wire
    syscalls    on files, that Python doesn't have
    skipped     which blocks are zeros because they were free

May race: requests and copies set bits while a commit takes its snapshot. `Store.lock` guards bits,
counts and metadata and is never held across I/O; commits, and changes of the metadata, run one at a
time each.
"""
