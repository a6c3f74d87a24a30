"""What the project claims, checked by whoever doubts it: `make claims`.

claims.toml has them, `claim` reads them and says what a table of metrics makes of each, `__main__`
makes the runs that they speak of and prints claim, published, measured, verdict.
"""
