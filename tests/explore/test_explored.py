"""The handover, in every order in which things may happen: no state in which a promise is broken.

`pytest -s` prints how many states there were; `make explore` visits larger worlds.
"""

import pytest

from tests.explore.plan import Plan
from tests.explore.planted import PLANTED, Planted
from tests.explore.search import Explorer, told
from tests.explore.worlds import worlds


@pytest.mark.parametrize("plan", worlds(), ids=lambda plan: plan.name)
def test_no_promise_is_broken_and_there_is_always_a_way_out(plan: Plan) -> None:
    found = Explorer(plan).explore()
    print(found)
    if found.violation is not None:
        wrong, trace = found.violation
        pytest.fail("\n".join([*told(plan, trace), *wrong]))
    assert found.ends > 0


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.what)
def test_a_planted_defect_is_found(planted: Planted) -> None:
    with planted.in_place():
        found = Explorer(planted.plan).explore()
        assert found.violation is not None, found
        wrong, trace = found.violation
        lines = told(planted.plan, trace)
    print("\n".join([f"{planted.what}: {found}", *lines, *wrong]))
    assert any(planted.says in one for one in wrong), wrong
