"""The Grafana dashboard uses exactly the metrics that a real run exports."""

import json
import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from resilient_io.telemetry.catalog import CATALOG
from resilient_io.telemetry.prometheus import PrometheusMetrics

DASHBOARD = Path(__file__).parents[3] / "docs" / "grafana" / "resilient-io.json"

SCRAPE_LABELS = {"job", "instance"}
"""Labels that a scrape adds."""

_SELECTOR = re.compile(r"(\w+)\{([^}]*)\}")
_LABEL = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\bby \(([^)]*)\)")
_LEGEND = re.compile(r"\{\{(\w+)\}\}")


def dashboard():
    return json.loads(DASHBOARD.read_text())


def targets():
    return [
        (panel["title"], target)
        for panel in dashboard()["panels"]
        for target in panel.get("targets", ())
    ]


def exported(service):
    """Return the labels of each exported sample."""
    body, _ = PrometheusMetrics(service.monitor, service.clients).render()
    return {
        sample.name: set(sample.labels)
        for family in text_string_to_metric_families(body.decode())
        for sample in family.samples
    }


async def test_real_run_exports_the_catalog_and_the_dashboard_uses_all_of_it(service):
    found = exported(service)
    known = {sample for metric in CATALOG.values() for sample in metric.sample_names}
    assert set(found) == known
    used = set()
    for title, target in targets():
        selected = set()
        for sample, selector in _SELECTOR.findall(target["expr"]):
            assert sample in found, f"{title}: not exported: {sample}"
            labels = found[sample] | SCRAPE_LABELS
            assert set(_LABEL.findall(selector)) <= labels, f"{title}: {selector}"
            assert selector.startswith('job=~"$job", instance=~"$instance"'), title
            selected |= labels
            used.add(sample)
        grouped = [
            label.strip()
            for labels in _GROUPING.findall(target["expr"])
            for label in labels.split(",")
        ]
        assert set(grouped) <= selected, f"{title}: {target['expr']}"
        # What is aggregated by labels has only these left for the legend.
        shown = set(_LEGEND.findall(target["legendFormat"]))
        assert shown <= (set(grouped) or selected), f"{title}: {target['legendFormat']}"
    assert used == known


async def test_variables_use_exported_metrics(service):
    found = exported(service)
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            (sample,) = re.findall(r"label_values\((\w+)", variable["definition"])
            assert sample in found


def test_panels_do_not_overlap_and_have_unique_ids():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_panel_has_a_description():
    for panel in dashboard()["panels"]:
        assert panel["title"]
        assert panel["type"] == "row" or panel["description"], panel["title"]
