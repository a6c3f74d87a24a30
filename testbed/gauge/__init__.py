"""What the regression check measures, in the lab on its virtual clock.

    python3 -m testbed.gauge requests|copies|misses

`requests`  what a request costs the processor: no link, one client, one request after the other
`copies`    a copy over the WAN while clients read and write: time, bytes, latencies, memory
`misses`    how many round trips a request takes that has to wait for the source

Each leaves its measurements as they are, in LAB_OUT/PART.json; nothing is judged here, but in
experiments/regress. What is measured begins at a full tenth of a second, so that little of what
came before shows in it.
"""
