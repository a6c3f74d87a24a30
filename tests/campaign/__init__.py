"""Fault campaigns: random small worlds and random faults by seed, on the lab's virtual clock.

world     what is moved, over what, and which events happen when; made from a seed
ledger    what clients were promised, and what each sector may hold because of that
guest     a client, a process of its own, which may be killed
storage   a site's file system, which may lose power, fill up, fail or be slow
server    a site's nbdkit, which may be killed
running   one world from its start to the comparison of every byte
faults    what each event does
inside    several worlds in one boot of the lab
boots     boots of the lab, some at a time; a failing run is one file
"""
