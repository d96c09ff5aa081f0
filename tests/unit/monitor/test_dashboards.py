"""The alerts and the dashboard name metrics, labels and pages that exist; promtool looks too, where it is installed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kbatchd.monitor.metrics import METRICS

ROOT = Path(__file__).parents[3]
ALERTS = ROOT / "config/prometheus-alerts.yml"
DASHBOARD = ROOT / "config/grafana-dashboard.json"

KNOWN = {metric.name: metric for metric in METRICS}
#: What Prometheus adds to each.
ADDED = {"instance", "job", "le"}

NAME = re.compile(r"\bkbatchd_\w+")
MATCHERS = re.compile(r"(kbatchd_\w+)\{([^}]*)\}")
GROUPED = re.compile(r"by \(([\w, ]+)\)")


def metric(sample: str) -> str:
    """Return the metric that a sample is of: a histogram has several."""
    base = re.sub(r"_(bucket|sum|count)$", "", sample)
    return base if base in KNOWN and KNOWN[base].kind == "histogram" else sample


def alerts() -> list[Any]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def dashboard_expressions() -> Iterator[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["query"]["query"]


EXPRESSIONS = [*(rule["expr"] for rule in alerts()), *dashboard_expressions()]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_metrics_and_labels_exist(expression: str) -> None:
    names = {metric(name) for name in NAME.findall(expression)}
    assert names
    assert names - KNOWN.keys() == set()
    for name, matchers in MATCHERS.findall(expression):
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers))
        assert labels - {*KNOWN[metric(name)].labels} - ADDED == set(), name
    for labels in GROUPED.findall(expression):
        common = set.intersection(*({*KNOWN[name].labels} for name in names))
        assert {label.strip() for label in labels.split(",")} - common - ADDED == set()


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_counters_are_asked_for_their_rate_and_gauges_are_not(expression: str) -> None:
    for name in NAME.findall(expression):
        ranged = re.search(rf"(?:rate|increase)\({name}(?:\{{[^}}]*\}})?\[", expression) is not None
        counts = KNOWN[metric(name)].kind in ("counter", "histogram")
        assert ranged == counts or "label_values" in expression, name


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_what_and_what_to_do(rule: Any) -> None:
    assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description"}
    text = " ".join(rule["annotations"].values())
    used = set(re.findall(r"\$labels\.(\w+)", text))
    kept = {label.strip() for labels in GROUPED.findall(rule["expr"]) for label in labels.split(",")}
    if not kept:
        kept = ADDED.union(*({*KNOWN[metric(name)].labels} for name in NAME.findall(rule["expr"])))
    assert used - kept == set()
    for page, title in re.findall(r'(docs/[\w-]+\.md)(?:, "([^"]+)")?', text):
        assert title in (ROOT / page).read_text()


def test_promtool_finds_no_fault() -> None:
    promtool = shutil.which("promtool")
    if promtool is not None:  # .ci/run installs it
        done = subprocess.run([promtool, "check", "rules", ALERTS], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        grid = panel["gridPos"]
        for x in range(grid["x"], grid["x"] + grid["w"]):
            assert x < 24, panel["title"]
            for y in range(grid["y"], grid["y"] + grid["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
