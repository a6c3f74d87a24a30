"""Two emulated sites, a WAN between them, and moves of a guest and its disk from one to the other.

    lab         where a program runs: on this kernel, or in a VM on a virtual clock
    network     the sites' hosts and links, the WAN, and what happens to it
    hosts       processes on those hosts, kernel nbd devices, the guest's disk
    systems     what becomes of the disk: ours, and the peers
    workloads   what the guest does meanwhile
    migration   one scripted move, and the proof that nothing was lost
    copybench   a disk copied by several systems, without a guest
    testing     the same for others: a pytest plugin
    discovery   links, systems and workloads, also those of other projects
    ending      how all of it comes to an orderly end

Promises: whatever is started is ended, by its own pid, also on failure; in the VM equal runs give
equal bytes.
"""
