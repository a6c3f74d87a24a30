"""Bad input of all kinds, made up by fuzzers: refused with a clear word or survived, not believed.

Each test here that hypothesis feeds is a target, named after it. `make test` gives each a few
inputs, always the same; `make fuzz` (see __main__.py) as many as there is time for, and follows
what they reach. So a target takes no fixtures. What a long run has found becomes a test of its own.
"""
