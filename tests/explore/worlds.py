"""The worlds that are explored: small enough to visit every state, each for its own question."""

from tests.explore.plan import Plan

NO_COPY = frozenset({"keeper", "data", "copier"})
TO_P = {"p": "s"}
TWO = {"p": "s", "q": "s"}


def worlds(more: int = 0) -> list[Plan]:
    """Every world; `more` is added to what may happen of each kind."""

    def budget(**amounts: int) -> dict[str, int]:
        return {what: amount + more for what, amount in amounts.items()}

    onward = {"p": "s", "q": "p"}
    return [
        Plan(
            "a move, its link cut",
            *(TO_P, {"p": ("activate",)}, budget(verb=1, write=1, cut=1)),
            without=NO_COPY,
        ),
        Plan(
            "a move given back, its link cut",
            *(TO_P, {"p": ("activate", "withdraw")}, budget(verb=2, cut=1)),
            without=NO_COPY,
        ),
        Plan(
            "the source's operator",
            *(TO_P, {"p": ("activate",), "s": ("seal", "unseal")}, budget(verb=2, cut=1)),
            without=NO_COPY,
        ),
        Plan(
            "unsealed by force",
            *(TO_P, {"p": ("activate",), "s": ("unseal --force",)}, budget(verb=2, cut=0)),
            without=NO_COPY,
        ),
        Plan(
            "two proxies of one source",
            *(TWO, {"p": ("activate",), "q": ("activate",)}, budget(verb=2)),
            without=NO_COPY,
        ),
        Plan(
            "the second is started active",
            *(TWO, {"p": ("activate",)}, budget(verb=1)),
            active=frozenset("q"),
            without=NO_COPY,
        ),
        Plan(
            "started active, a server killed",
            *(TWO, {}, budget(kill=1)),
            active=frozenset("q"),
            crashers=("s", "q"),
            without=NO_COPY,
        ),
        Plan(
            "a hold",
            *(TO_P, {"p": ("activate --hold", "release", "withdraw")}, budget(verb=2, write=1)),
            without=NO_COPY,
        ),
        Plan(
            "a move, a server killed",
            *(TO_P, {"p": ("activate",)}, budget(verb=1, write=1, kill=1)),
            without=NO_COPY,
        ),
        Plan(
            "written again after a kill, given back",
            *(TO_P, {"p": ("withdraw",)}, budget(verb=1, write=2, kill=1)),
            active=frozenset("p"),
            writers=("p",),
            written=1,
            crashers=("p",),
            without=NO_COPY,
        ),
        Plan(
            "a move, power lost",
            *(TO_P, {"p": ("activate",)}, budget(verb=1, write=1, power=1)),
            without=NO_COPY,
        ),
        Plan(
            "given back after a power failure",
            *(TO_P, {"p": ("withdraw", "activate")}, budget(verb=2, power=1)),
            active=frozenset("p"),
            crashers=("p",),
            without=NO_COPY,
        ),
        Plan(
            "onward, before all is here",
            *(onward, {"p": ("activate",), "q": ("activate",)}, budget(verb=2, write=1)),
            writers=("p",),
            without=NO_COPY,
        ),
        Plan(
            "a copy under way",
            *(TO_P, {"p": ("activate",)}, budget(verb=1, write=1, copy=1)),
            ahead=(0,),
        ),
        Plan(
            "and back",
            *(TO_P, {"p": ("activate",), "s": ("activate",)}, budget(verb=2, kill=1)),
            ahead=(0, 1),
            eager=frozenset({"stay_ready", "rest", "data", "copier"}),
            back="p",
            crashers=("s",),
        ),
        Plan(
            "a source that forgets",
            *(TO_P, {"p": ("activate",)}, budget(verb=1, write=1, kill=1)),
            kept=False,
            roams=False,
            crashers=("s",),
            without=frozenset({"keeper", "copier"}),
        ),
    ]
