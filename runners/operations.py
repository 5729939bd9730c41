"""Grafana's dashboard for those who run jobs on Flink, over Prometheus."""

from typing import Final

from velocity.pipelines.grafana_page import OPTIONS, Json, page, variable
from velocity.runners.signals import JOB, Signal, series, signals

INPUT: Final = "DS_PROMETHEUS"
"""What whoever imports the dashboard chooses a data source for."""
SOURCE: Final = {"type": "prometheus", "uid": f"${{{INPUT}}}"}


def operations() -> Json:
    """A panel for each signal, of the jobs that are chosen.

    >>> operations()["panels"][0]["title"]
    'Lag'
    """
    panels = [_panel(signal) for signal in signals(f'{JOB}=~"$job"')]
    return page(
        "velocity-operations",
        "Velocity: operations",
        "Jobs on Flink, by its Prometheus reporter.",
        panels,
        [_job()],
        {"name": INPUT, "label": "Prometheus", "pluginId": "prometheus"},
    )


def _panel(signal: Signal) -> Json:
    return {
        "title": signal.title,
        "description": signal.about,
        "type": "timeseries",
        "datasource": SOURCE,
        "targets": [
            {
                "refId": f"Q{i}",
                "datasource": SOURCE,
                "expr": query,
                "legendFormat": legend,
                "range": True,
            }
            for i, (legend, query) in enumerate(signal.queries.items())
        ],
        "fieldConfig": {
            "defaults": {"unit": signal.unit, "custom": {"drawStyle": "line", "fillOpacity": 5}},
            "overrides": [],
        },
        "options": OPTIONS,
    }


def _job() -> Json:
    query = f"label_values({series('read_messages')}, {JOB})"
    return variable("job", SOURCE, {"query": query, "refId": "jobs"}, query, ".+")
