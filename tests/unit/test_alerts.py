"""The alert rules, by Prometheus' own judge; rules and dashboard speak of what there is."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from relocator.cli import metrics
from tests.support.command import relocator

RULES, DASHBOARD = metrics.FOLDER / "alerts.yml", metrics.FOLDER / "dashboard.json"

SCRAPED = "up of Prometheus itself"
ACTIVATING = 'state{relocator_state="activating"}'
#: alert -> the series that let it fire, a value a minute; by when it fires, and by when not yet
CASES: dict[str, tuple[dict[str, str], str, str]] = {
    "RelocatorDown": ({"up": "1 1 0x9"}, "3m", "2m"),
    "RelocatorUnwatched": ({SCRAPED: "1 1 0x9"}, "3m", "2m"),
    "RelocatorCommitFailing": ({'fault{part="commit"}': "0 0 1x9"}, "2m", "1m"),
    "RelocatorOutdated": ({'state{relocator_state="outdated"}': "0 0 1x9"}, "2m", "1m"),
    "RelocatorSourceLost": ({"source_lost": "0 0 1x9"}, "3m", "2m"),
    "RelocatorWritesWait": ({ACTIVATING: "0 1x9"}, "2m", "1m"),
    "RelocatorStoreNearlyFull": (
        {"store_free_bytes": "90 40x9", "store_unallocated_bytes": "80x9", "size_bytes": "1000x9"},
        "2m",
        "1m",
    ),
    "RelocatorStoreTooSmall": (
        {"store_free_bytes": "90x30", "store_unallocated_bytes": "80 100x30"},
        "16m",
        "15m",
    ),
    "RelocatorNoProgress": (
        {
            "present_bytes": "1 2 3x30",
            "size_bytes": "9x30",
            'background{relocator_background="on"}': "1x30",
        },
        "18m",
        "15m",
    ),
    "RelocatorCopyFailing": ({'fault{part="copy"}': "0 1x30"}, "6m", "5m"),
    "RelocatorNotInStep": ({'fault{part="handover"}': "0 1x30"}, "6m", "5m"),
    "RelocatorBehind": ({"behind_seconds": "0 90x30"}, "16m", "15m"),
    "RelocatorLate": ({"late_seconds": "0 900x30"}, "6m", "5m"),
}
#: the same disks, well
WELL = {
    SCRAPED: "1x60",
    "up": "1x60",
    ACTIVATING: "1 0x60",
    'fault{part="commit"}': "0x60",
    'fault{part="copy"}': "0x60",
    'fault{part="handover"}': "0x60",
    "source_lost": "0x60",
    "store_free_bytes": "500x60",
    "store_unallocated_bytes": "400x60",
    "size_bytes": "1000x60",
    "present_bytes": "1+1x60",
    'background{relocator_background="on"}': "1x60",
    "behind_seconds": "5x60",
    "late_seconds": "0x60",
}


def series(of: dict[str, str]) -> list[dict[str, str]]:
    found = []
    for name, values in of.items():
        stem, _, labels = name.partition("{")
        more = f", {labels}" if labels else "}"
        key = f'relocator_{stem}{{disk="d", instance="i", job="j"{more}'
        if name == SCRAPED:
            key = 'up{instance="i", job="relocator"}'
        found.append({"series": key, "values": values})
    return found


def rule(name: str) -> dict[str, str]:
    """The labels that an alert has."""
    text = RULES.read_text().partition(f"- alert: {name}\n")[2]
    found = re.search(r"severity: (\w+)", text)
    assert found is not None
    return {"severity": found[1], "disk": "d", "instance": "i", "job": "j"}


def fires(alert: str, part: str | None) -> dict[str, Any]:
    return {"exp_labels": rule(alert) | ({"part": part} if part else {})}


def judged(tmp_path: Path, tests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    """What `promtool test rules` says of the tests; JSON is YAML."""
    text = re.sub(r" +annotations:\n(?: {10}.*\n)+", "", RULES.read_text())
    assert "summary" not in text
    (tmp_path / "rules.yml").write_text(text)
    document = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(json.dumps(document))
    return subprocess.run(
        ["promtool", "test", "rules", "tests.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_rules_are_rules() -> None:
    command = ["promtool", "check", "rules", "--lint-fatal", str(RULES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert set(re.findall(r"- alert: (\w+)", RULES.read_text())) == set(CASES)


def test_each_alert_fires_in_its_time_and_not_before(tmp_path: Path) -> None:
    tests: list[dict[str, Any]] = []
    for alert, (changed, then, earlier) in CASES.items():
        part = next(
            (part for part in ("commit", "copy", "handover") if f'"{part}"' in str(changed)), None
        )
        expected = [fires(alert, part)]
        if alert == "RelocatorNoProgress":
            expected[0]["exp_labels"] = rule(alert)
        if state := re.search(r'relocator_state="(\w+)"', str(changed)):
            expected[0]["exp_labels"]["relocator_state"] = state[1]
        if alert == "RelocatorUnwatched":
            expected[0]["exp_labels"] = unwatched(instance="i")
        checks = [
            {"eval_time": then, "alertname": alert, "exp_alerts": expected},
            {"eval_time": earlier, "alertname": alert, "exp_alerts": []},
        ]
        tests.append(
            {
                "name": alert,
                "interval": "1m",
                "input_series": series(changed),
                "alert_rule_test": checks,
            }
        )
    done = judged(tmp_path, tests)
    assert done.returncode == 0, done.stdout + done.stderr


def unwatched(**labels: str) -> dict[str, str]:
    return {"severity": "critical", "job": "relocator", **labels}


def test_what_is_nowhere_to_be_scraped_is_an_alert(tmp_path: Path) -> None:
    expected = [{"exp_labels": unwatched()}]
    check = {"eval_time": "2m", "alertname": "RelocatorUnwatched", "exp_alerts": expected}
    done = judged(tmp_path, [{"interval": "1m", "alert_rule_test": [check]}])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_disk_that_is_well_has_no_alert(tmp_path: Path) -> None:
    checks = [{"eval_time": "50m", "alertname": name, "exp_alerts": []} for name in CASES]
    tests = [{"interval": "1m", "input_series": series(WELL), "alert_rule_test": checks}]
    done = judged(tmp_path, tests)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    known = {f"relocator_{name}" for name, *_ in metrics._GAUGES}
    known |= {f"relocator_{name}_total" for name, _ in metrics._COUNTERS}
    known |= {f"relocator_{name}" for name, *_ in metrics._ENUMS}
    known |= {f"relocator_{name}" for name in ("up", "fault", "request_seconds")}
    known.add("relocator_requests_total")
    for path in (RULES, DASHBOARD):
        assert set(re.findall(r"relocator_\w+", path.read_text())) <= known, path


def test_the_page_s_configuration_is_one(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "monitoring.md"
    block = re.search(r"    rule_files:.*?\n\n", page.read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "prometheus.yml").write_text(re.sub(r"(?m)^    ", "", block[0]))
    shutil.copy(RULES, tmp_path / "relocator.yml")
    command = ["promtool", "check", "config", str(tmp_path / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, f"{len(CASES)} rules found" in done.stdout) == (0, True), done.stderr


def test_the_page_names_every_alert() -> None:
    page = Path(__file__).parents[2] / "docs" / "monitoring.md"
    assert re.findall(r"(?m)^\| `(\w+)`", page.read_text()) == list(CASES)


def test_both_can_be_printed() -> None:
    for name, path in (("alerts", RULES), ("dashboard", DASHBOARD)):
        done = relocator("metrics", "--print", name)
        assert (done.returncode, done.stdout) == (0, path.read_text())
    missing = relocator("metrics")
    assert (missing.returncode, "CONTROL: is missing" in missing.stderr) == (2, True)
