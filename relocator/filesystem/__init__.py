"""Which blocks of a disk hold data, by what its own tables say. No I/O, no threads.

Promises: "free" is said only of what passed every check; all else is in use. No number from the
disk is trusted: a reader never leaves its volume and never asks for more than it can hold.

    inuse       the whole disk                                             -> survey, InUse
    partitions  MBR, GPT, and what stands in them
    extfs       ext2, ext3, ext4: bitmaps that are believed
    ext_layout, ext_groups, ext_inode, ext_journal, checksums   its parts
    rounds      readers as generators: a round of extents out, their bytes in -> serve
"""
