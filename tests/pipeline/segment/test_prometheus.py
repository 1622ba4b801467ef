"""The metrics that Prometheus gets, and the dashboard that shows them."""

import json
import re

from pipeline.segment import prometheus
from tests.conftest import REPOSITORY

DASHBOARD = REPOSITORY / "deploy" / "grafana" / "sceneparse.json"


def test_the_dashboard_shows_every_metric_and_none_that_is_not_there() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel["targets"]]
    shown = {
        re.sub(r"_bucket$", "", name) for text in expressions for name in re.findall(r"ray_(sceneparse_\w+)", text)
    }
    assert shown == {prometheus.IMAGES, prometheus.STAGE_SECONDS, prometheus.PREDICTOR_WAIT_SECONDS}


def test_panels_do_not_lie_on_each_other() -> None:
    taken = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + 8)}
        assert not cells & taken
        assert place["x"] + place["w"] <= 24
        taken |= cells
