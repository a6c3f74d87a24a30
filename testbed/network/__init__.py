"""The network: hosts of two sites (Mininet), and the WAN between them (netem through pyroute2).

    topology    sites as a description, and made real                      -> sites, Sites, ADDRESS
    wan         a link's delay, rate, loss and queue                       -> LinkProfile, set_link
    links       the library: links by name, a file each                    -> link, library
    link_events changes of the link while a run goes on                    -> Schedule
    calibrate   whether the link is what was asked for                     -> calibrate

Promises: a link that is off by more than the tolerance is refused before anything is measured;
namespaces and interfaces go when `sites` is left. Events run in a thread of their own.
"""
