"""Numbers become what a person reads: figures, tables, sentences, one page.

    figures/    a module a kind of figure, over the same evidence          -> ALL
    plots       the figures of a demo's runs
    wording     numbers and names in words
    report      the demo's page; evaluation   the evaluation's page        templates/
    publish     what of an evaluation goes into results/

A function of the metrics and runs alone: no dates, hosts or paths.
"""
