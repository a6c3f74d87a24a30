"""Runs become numbers. Pure: files in, tables out.

series      a run's records as series over time                        -> Runs, Window
measures    single figures of a run, as docs/metrics.md defines them
metrics     the table of all runs, metrics.csv
estimates   that table read, and what several seeds say together       -> Estimate
agree       whether a new table agrees with a published one
compare     two trees, byte by byte
"""
