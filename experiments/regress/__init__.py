"""Does this code do worse than the code before it? `make regress`; see docs/regress.md.

tree      the code to be measured: a product, with the test bed as it stands here
measure   two boots of the lab beside each other, on the virtual clock
figures   from measurements to figures: what each says, and where to look when it moves
baseline  the figures that are committed, and of which code and lab they are
judge     what moved, and by more than what a change that changes nothing moves it by
noise     how much that is: irrelevant changes, measured
report, plot   for a terminal, for a summary, and as a picture
slowdowns the proof: changes for the worse, each caught and named
bisect    which commit it was
"""
