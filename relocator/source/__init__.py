"""The far end: the site that a disk comes from.

Promises: a request is answered exactly once, however often the connection breaks on the way; no
byte is taken from a server that is not the disk the copy was begun from.

    endpoint    where a source is and how it may be spoken to, secrets included -> Endpoint
    handles     libnbd, the only place that opens a connection
    tunnel      ssh
    connection  one connection that heals itself, owned by one thread      -> Connection, Request
    apart       one for what the source leaves unanswered                  -> Apart
    upstream    several of them: demand apart from background              -> Upstream
    remote      the verbs and further exports of a source that is ours     -> Source
    answer      what it answers to a verb                                  -> Answer
    bitmaps     what QEMU has recorded of a source that is not ours       -> DirtyBitmap
    replies     a verb's reply on the wire
    identity    whether a source that comes back is still the same disk    -> Guard
    verify      proof of a copy by digests
    digests     content known by its digests, without being sent -> DigestsExport, Digests

May race: any thread submits requests; each connection's thread sends, receives and calls back, and
alone touches its libnbd handle. `Connection._lock` guards its queue.
"""
