"""Measuring Relocator against what a user would pick instead: `make bench`; see docs/bench.md.

Absolute figures of a shared machine mean little. So everything that is compared is measured in one
run, in turns, and what is reported is the median of the rounds and its ratio to a reference.
"""
