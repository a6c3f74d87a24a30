"""Ours against each peer: what the first tables and the verdicts say of figures made by hand."""

import math
from typing import Any

import pandas as pd

from experiments.publishing.figures import duels, pairs, verdicts


def compared(**peer: float) -> pd.DataFrame:
    """relocator, 1 everywhere, and a mirror with these figures."""
    base: dict[str, Any] = {measure.column: 1.0 for measure in pairs.MEASURES}
    base |= {
        "handover_s": 0.03,
        "background_delay_s": 0.0,
        "observed_s": 60.0,
        "slow_until_s": 60.0,
        "lost_step_s": 0.5,
    }
    base["wan_over_allocated"] = 1.0
    rows = [{**base, "name": "relocator"}, {**base, **peer, "name": "mirror"}]
    return pd.DataFrame(rows).assign(axis_rtt="20ms", axis_rate="100mbit", seed=1)


def test_a_verdict_says_where_each_is_ahead() -> None:
    (said,) = verdicts.verdicts(compared(downtime_s=3.0, due_read_p99_s=0.5, lost_work_s=4.0))
    assert "Against mirror: ours is down for less time (3 times)" in said
    assert "mirror reads faster meanwhile (2 times)" in said
    assert "mirror loses 3 s more of work" in said


def test_a_verdict_says_what_the_runs_show_to_be_the_reason() -> None:
    (said,) = verdicts.verdicts(compared(downtime_s=0.5, handover_s=0.001, independent_s=math.nan))
    assert "of relocator's downtime 30 ms on average are the handover of the disk" in said
    assert "there nothing is" not in said
    (said,) = verdicts.verdicts(compared(downtime_s=0.5, handover_s=2e-6))
    assert "the handover of the disk, which is sealed at the source; there nothing is" in said
    slow = compared(due_read_p99_s=0.0005)
    slow.loc[0, "due_read_p99_s"] = 0.024
    (said,) = verdicts.verdicts(slow)
    assert "costs a round trip, our read p99 is 1.2" in said
    (said,) = verdicts.verdicts(compared(independent_s=0.3).assign(background_delay_s=8.0))
    assert "was told to start 8 s after the switch" in said


def test_a_handover_explains_no_more_than_it_took() -> None:
    frame = compared(downtime_s=0.5, handover_s=0.001)
    (said,) = verdicts.verdicts(frame)
    assert "30 ms on average are the handover of the disk; the other 470 ms are not" in said
    (said,) = verdicts.verdicts(frame.assign(handover_s=[0.4, 0.001]))
    assert "400 ms on average are the handover of the disk." in said


def test_what_differs_by_less_than_a_tenth_is_no_victory() -> None:
    assert verdicts.verdicts(compared(downtime_s=1.05, independent_s=0.95)) == []


def test_never_is_worse_than_any_time() -> None:
    (said,) = verdicts.verdicts(compared(recovered_s=math.nan))
    assert "ours is at local speed sooner (there: not seen)" in said
    nobody = compared().assign(recovered_s=math.nan)
    assert verdicts.verdicts(nobody) == []


def test_the_table_says_how_many_times_better_and_who_is_ahead() -> None:
    peer = compared(downtime_s=3.0, due_read_p99_s=0.5, due_write_p99_s=1.04)
    scores = duels.scores(peer.assign(recovered_s=[1.0, math.nan]))["mirror"]
    found = dict(zip((m.column for m in pairs.SCORED), scores, strict=True))
    assert found["downtime_s"] == duels.Score("3 ×", "ok")
    assert found["due_read_p99_s"] == duels.Score("0.5 ×", "bad")
    assert found["due_write_p99_s"] == duels.Score("1.04 ×", "")
    assert found["recovered_s"] == duels.Score("there: not seen", "ok")


def test_the_first_table_has_the_best_of_both_sides() -> None:
    frame = compared(downtime_s=3.0, due_read_p99_s=0.5, recovered_s=math.nan)
    base = {**frame.iloc[0].to_dict(), "name": "hybrid", "due_read_p99_s": 0.51}
    worse = {**frame.iloc[1].to_dict(), "name": "offline", "downtime_s": 9.0}
    (row,) = duels.front(pd.concat([frame, pd.DataFrame([base, worse])])).values()
    found = dict(zip((m.column for m in pairs.SCORED), row, strict=True))
    assert found["downtime_s"] in (
        duels.Score("3 ×: mirror to relocator", "ok"),
        duels.Score("3 ×: mirror to hybrid", "ok"),
    )
    assert found["due_read_p99_s"] == duels.Score("0.98 ×: mirror to hybrid", "")
    assert found["recovered_s"] == duels.Score("nobody else: not seen", "ok")


def test_each_peer_meets_the_better_of_ours() -> None:
    frame = compared(downtime_s=0.5, independent_s=0.2)
    base = frame.iloc[0].to_dict()
    hybrid = {**base, "name": "hybrid", "independent_s": 0.1, "due_write_p99_s": 3.0}
    seeded = {**base, "name": "seeded", "downtime_s": 0.1}
    frame = pd.concat([frame, pd.DataFrame([hybrid, seeded])])
    (scores,) = duels.scores(frame).values()
    found = dict(zip((m.column for m in pairs.SCORED), scores, strict=True))
    assert found["independent_s"] == duels.Score("2 ×", "ok")
    assert found["due_write_p99_s"] == duels.Score("1 ×", "")
    assert found["downtime_s"] == duels.Score("0.5 ×", "bad"), "seeded is neither"
    *_, last = verdicts.verdicts(frame.assign(wan_over_allocated=[1.0, 1.0, 1.0, 0.2]))
    assert "0.2 times the bytes over the WAN, 1 times the time" in last
    said = duels.tally(duels.front(frame))
    assert said == (
        "Of 6 cells ours is ahead in 1, no further than 10 % apart in 4, "
        "another in 1: downtime (1 of 1 conditions); each peer's sentence says why."
    )
    assert "nobody is ahead" in duels.tally(duels.front(compared(downtime_s=3.0)))


def seeds(**columns: tuple[list[float], list[float]]) -> pd.DataFrame:
    """relocator and a mirror with these figures, a value a seed; 1 everywhere else."""
    count = len(next(iter(columns.values()))[0])
    frame = pd.concat([compared().assign(seed=seed) for seed in range(1, count + 1)])
    for name, (ours, theirs) in columns.items():
        frame.loc[frame["name"] == "relocator", name] = ours
        frame.loc[frame["name"] == "mirror", name] = theirs
    return frame.reset_index(drop=True)


def scored(frame: pd.DataFrame, column: str) -> tuple[duels.Score | None, duels.Score | None]:
    """Of one measure: against the mirror, and in the first table's first row."""
    which = [measure.column for measure in pairs.SCORED].index(column)
    (against,) = duels.scores(frame).values()
    first, *_ = duels.front(frame).values()
    return against[which], first[which]


def test_a_time_that_some_seeds_never_reached_is_no_victory_of_the_others() -> None:
    lucky = [1.0, *[math.nan] * 4], [2.0] * 5
    against, first = scored(seeds(recovered_s=lucky), "recovered_s")
    assert against == duels.Score("2 ×; ours: not seen in 4 of 5 runs", "bad")
    assert first == duels.Score(
        "2 ×: mirror to relocator; relocator: not seen with 4 of 5 seeds", "bad"
    )
    against, _ = scored(seeds(recovered_s=([2.0, math.nan], [1.9, 2.0])), "recovered_s")
    assert against == duels.Score("0.95 ×; ours: not seen in 1 of 2 runs", "bad")
    (said,) = verdicts.verdicts(seeds(recovered_s=([2.0, math.nan], [1.9, 2.0])))
    assert "mirror is at local speed sooner (ours: not seen)" in said and "nan" not in said
    against, _ = scored(seeds(recovered_s=([1.9, 2.0], [2.0, math.nan])), "recovered_s")
    assert against == duels.Score("1.05 ×; there: not seen in 1 of 2 runs", "ok")


def test_the_best_is_not_who_was_quick_once_and_never_again() -> None:
    frame = seeds(recovered_s=([0.5, math.nan, math.nan], [3.0, 3.1, 3.2]))
    steady = frame[frame["name"] == "relocator"].assign(name="hybrid", recovered_s=[1.0, 1.1, 1.2])
    _, first = scored(pd.concat([frame, steady]), "recovered_s")
    assert first is not None and first.text.endswith("mirror to hybrid") and first.kind == "ok"


def test_what_was_watched_for_less_time_is_not_said_to_never_happen() -> None:
    frame = seeds(independent_s=([30.0], [math.nan]))
    assert scored(frame, "independent_s")[0] == duels.Score("there: never", "ok")
    assert scored(frame.assign(observed_s=10.0), "independent_s") == (None, None)
    frame = seeds(recovered_s=([2.5], [math.nan]))
    assert scored(frame, "recovered_s")[0] == duels.Score("there: not seen", "ok")
    few = frame.assign(slow_until_s=0.2)
    assert scored(few, "recovered_s") == (None, None), "it may have been as before since 0.2 s"


def test_what_was_not_measured_is_no_defeat() -> None:
    assert scored(seeds(due_write_p99_s=([0.1], [math.nan])), "due_write_p99_s")[0] is None
    assert verdicts.verdicts(seeds(due_write_p99_s=([0.1], [math.nan]))) == []


def test_seeds_that_do_not_tell_two_apart_give_no_verdict() -> None:
    against, first = scored(seeds(downtime_s=([1.0] * 3, [0.7, 1.2, 2.2])), "downtime_s")
    assert first is not None and first.text.startswith("1.23 × (") and first.kind == "untold"
    assert against == duels.Score("1.23 ×", "untold")
    (said,) = verdicts.verdicts(seeds(downtime_s=([1.0] * 3, [0.7, 1.2, 2.2])))
    assert said == (
        "Against mirror: Not told by the seeds, or not alike in all conditions: "
        "who is down for less time (1.23 times)."
    )
    assert "not told apart in 6, another in none." in duels.tally(
        {"20ms": [first] * len(pairs.SCORED)}
    )
    _, first = scored(seeds(downtime_s=([1.0] * 3, [1.9, 2.0, 2.1])), "downtime_s")
    assert first is not None and first.kind == "ok"


def test_ahead_somewhere_and_nowhere_behind_counts_for_both_sides_alike() -> None:
    near, far = compared(downtime_s=1.0), compared(downtime_s=2.0).assign(axis_rtt="100ms")
    assert scored(pd.concat([near, far]), "downtime_s")[0] == duels.Score("1 to 2 ×", "ok")
    worse = compared(downtime_s=0.5).assign(axis_rtt="100ms")
    assert scored(pd.concat([near, worse]), "downtime_s")[0] == duels.Score("0.5 to 1 ×", "bad")
    noisy = seeds(downtime_s=([1.0, 1.0], [0.01, 0.9])).assign(axis_rtt="200ms")
    against, _ = scored(pd.concat([far, noisy]), "downtime_s")
    assert against == duels.Score("0.095 to 2 ×", "untold"), "a loss that the seeds don't prove"


def test_never_in_one_condition_is_not_never() -> None:
    far = compared(recovered_s=math.nan).assign(axis_rtt="100ms")
    frame = pd.concat([compared(), far])
    assert scored(frame, "recovered_s")[0] == duels.Score(
        "1 ×; there: not seen in 1 of 2 runs", "ok"
    )
    (said,) = verdicts.verdicts(frame)
    assert "ours is at local speed sooner (there: not seen in 1 of 2 conditions)" in said
    far.loc[:, "recovered_s"] = [math.nan, 1.0]
    (said,) = verdicts.verdicts(pd.concat([compared(recovered_s=0.5), far]))
    assert "(2 times in 1 of 2 conditions, ours: not seen in 1 of 2 conditions)" in said
    assert "nan" not in said


def test_nobody_is_ahead_of_whom_may_have_been_sooner() -> None:
    frame = compared(recovered_s=math.nan).assign(slow_until_s=[60.0, 0.2])
    offline = frame[frame["name"] == "mirror"].assign(name="offline", recovered_s=3.0)
    both = pd.concat([frame, offline])
    (row,) = duels.front(both).values()
    assert row[-1] == duels.Score("3 ×: offline to relocator; mirror: not known", "untold")
    assert duels.alone(pd.concat([both, frame[:1].assign(name="hybrid")]))["hybrid"][-1] == (
        duels.Score("3 ×", "untold")
    )
    (row,) = duels.front(both.assign(slow_until_s=60.0)).values()
    assert row[-1] == duels.Score("3 ×: offline to relocator", "ok")
    frame.loc[0, "recovered_s"], frame.loc[0, "slow_until_s"] = math.nan, 0.2
    frame.loc[1, "recovered_s"] = 3.0
    assert duels.front(frame)["20ms, 100mbit"][-1] is None, "ours may have been sooner too"


def test_conditions_in_which_nothing_can_be_told_are_counted() -> None:
    far = compared(recovered_s=math.nan).assign(axis_rtt="100ms", slow_until_s=0.2)
    frame = pd.concat([compared(recovered_s=3.0), far])
    assert scored(frame, "recovered_s")[0] == duels.Score("3 × (known in 1 of 2)", "ok")
    (said,) = verdicts.verdicts(frame)
    assert "is at local speed sooner (3 times in 1 of 2 conditions)" in said


def test_conditions_in_which_a_peer_failed_are_counted() -> None:
    far = compared().assign(axis_rtt="100ms")
    frame = pd.concat([compared(downtime_s=3.0), far[far["name"] == "relocator"]])
    assert list(duels.scores(frame)) == ["mirror (1 of 2 conditions)"]
    (said,) = verdicts.verdicts(frame)
    assert said.startswith(
        "Against mirror (1 of 2 conditions): ours is down for less time (3 times)"
    )
    frame = seeds(downtime_s=([1.0, 1.0], [3.0, 3.0])).drop(index=1)
    assert scored(frame, "downtime_s")[1] == duels.Score(
        "3 ×: mirror to relocator, 1 of 2 seeds", "ok"
    )


def test_each_of_ours_is_shown_by_itself() -> None:
    frame = compared(downtime_s=0.5, independent_s=0.5)
    hybrid = frame[frame["name"] == "relocator"].assign(name="hybrid", independent_s=0.1)
    found = duels.alone(pd.concat([frame, hybrid.assign(downtime_s=2.0)]))
    assert found["relocator"][:2] == [duels.Score("0.5 ×", "bad")] * 2
    assert found["hybrid"][:2] == [duels.Score("0.25 ×", "bad"), duels.Score("5 ×", "ok")]
    assert duels.alone(frame) == {}, "there is but one"


def test_lost_work_is_compared_seed_by_seed() -> None:
    frame = seeds(lost_work_s=([1.0, 5.0], [1.0, 5.0])).drop(index=2)
    assert verdicts.verdicts(frame) == [], "the second seed's work is lost by whoever ran it"
    assert "ours loses 2 s more" in verdicts.verdicts(seeds(lost_work_s=([3.0], [1.0])))[0]


def test_lost_work_is_no_more_than_was_counted() -> None:
    """The load has few units: a share of one is chance, and so is what is below nothing."""
    chance = seeds(lost_work_s=([-0.6], [0.0]))
    assert verdicts.verdicts(chance) == []
    frame = seeds(lost_work_s=([0.0], [2.0]))
    assert "mirror loses 2 s more" in verdicts.verdicts(frame)[0]
    assert verdicts.verdicts(frame.assign(lost_step_s=2.5)) == []
    frame = seeds(lost_work_s=([-0.6], [12.0]))
    assert "mirror loses 12 s more" in verdicts.verdicts(frame)[0], "of the 12 that were watched"
    old = frame.assign(lost_step_s=math.nan)
    assert "mirror loses 12 s more" in verdicts.verdicts(old)[0], "an older version's table"


def test_a_disk_that_was_not_there_in_time_is_not_said_to_stay() -> None:
    frame = seeds(independent_s=([2.0], [math.nan]), due_read_p99_s=([0.02], [0.01]))
    assert "its disk stays" not in verdicts.verdicts(frame)[0]
    frame.loc[1, "wan_over_allocated"] = math.nan
    assert "its disk stays" in verdicts.verdicts(frame)[0]


def test_a_p99_of_few_is_said_to_be_the_slowest() -> None:
    frame = compared().assign(during_reads=[99, 100], during_writes=[100, math.nan])
    assert duels.few(frame) == (
        "A p99 of fewer than 100 is the slowest of them: of reads in 1 of 2 runs."
    )
    assert duels.few(frame.assign(during_reads=100)) == ""
