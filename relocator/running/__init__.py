"""One running disk, from opening to closing: its life, its requests, its handover.

Promises: a write is acknowledged only where the disk is active; a transition is durable before
anybody sees it; what went wrong in one part is told until that part has put it right.

    engine      puts the parts together, starts and stops the threads      -> open_engine, Engine
    parts       what they share                                            -> Parts, Faults
    lifecycle   the state and all that follows from it, its only writer    -> Lifecycle
    states      which transition and which verb is legal, as tables        -> State, Role
    gate        tells a seal from a write in progress                      -> Gate
    disk        what a guest's request does                                -> Disk
    handover    how authority moves: activate at one site, seal at another -> Handover
    rounds      when a copy in standby is brought in step                  -> Rounds
    epochs, recorded    what is stale then: of a relocator, and by a QEMU's bitmap
    unrecorded  a source that tells neither: nothing is copied ahead
    sealing, rest   what comes with the seal, at the destination and at the source
    opening     a copy that begins, goes on, or returns                    -> open_disk
    verbs, control, exports     what operators and other sites may ask     -> Verbs, ControlServer
    status, latency             what is told of it                         -> Status
    graduation  a complete disk is handed to a plain server
    threadstate nbdkit's threads in Python

May race: guests' requests, the copier, the keeper, verbs, the handover. `Lifecycle._lock` makes a
transition one step and `Activation._lock` lets one activation run; no guest waits for either, nor
for an epoch to begin.
"""
