"""What comes next: how an absent block becomes present, in which order, and how fast.

Promises: a block has one owner at a time, is fetched once, and a guest's write beats a fetch that
is still on its way; background fetches leave the link to what guests wait for.

    hydration   the one path by which a block becomes present              -> Hydration
    claims      who is about to make which blocks present                  -> Claims
    background  which of them the background copy is to fetch              -> Background
    refused     what the source fails to read, and when it is asked again  -> Refused
    copier      the background copy, one thread; what a guest's miss sets off -> Copier
    pacer       when it may send                                           -> Pacer
    pacing      the window that fills the link and keeps its queue short; the token bucket; pure
    cap         what the operator allows, by timetable and deadline        -> Cap
    deadline    the least rate that is complete in time; pure              -> Deadline
    timetable   the cap by the time of day; pure                           -> Timetable
    sharing     one cap for several proxies of a host, in a file           -> Share
    plan        order and knowledge, changed while it is walked            -> Plan
    ordering    in which order the disk is visited; pure
    recent      which places were read last                                 -> Recent
    heat        which groups were used, how recently and often             -> Heat
    hints       what the source can tell of its disk: its working set, heat, blocks in use
    holes       what need not be transferred, for it is zeros
    seeding     what need not be transferred, for an image here has it; one thread -> Seeding
    settling    ranges between the seeding and the copier                  -> Settling
    seeds       such images                                                -> Seed
    elsewhere   where in them content of a digest is, at whatever place    -> Elsewhere
    readahead   which blocks to fetch besides those that were missed

May race: guests' threads that miss or write, the copier, seeding, connections' threads with
replies. All of it meets in hydration.py under the store's lock, never held across I/O.
"""
