"""Grafana's dashboards for jobs: panels over the Elasticsearch data source, to be imported."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from velocity.pipelines.dashboards import DRILL_DOWN, EARLY, PROVISIONAL, Board, Panel, interval
from velocity.pipelines.grafana_page import OPTIONS, Json, page, uid, variable
from velocity.transforms.transactions import ALERTS

INPUT: Final = "DS_ELASTICSEARCH"
"""What whoever imports the dashboard chooses a data source for."""
SOURCE: Final = {"type": "elasticsearch", "uid": f"${{{INPUT}}}"}

TOP: Final = "10"
"""Series in a chart, of each dimension: the keys of the greatest values."""
ROWS: Final = "500"
"""In a table."""
NONE: Final = "(none)"
"""Stands for a dimension without a value."""
UNITS: Final = {"": "short", "min": "m", "B": "decbytes", "%": "percent"} | {
    unit: unit for unit in ("ms", "s", "h", "d")
}
"""Those that Grafana knows by a name of its own; all others it writes as they are."""

OVERVIEW: Final = "velocity"
"""The name of what shows all jobs; those of one job have its name behind."""


def dashboard(board: Board, drill_down: str = DRILL_DOWN) -> Json:
    """A job's dashboard; the data source it is imported with reads the job's indices.

    The same panels as Kibana's. It can be narrowed by the dimension ``drill_down``: panels whose
    documents lack it are left as they are.
    """
    panels = [_panel(board, panel, drill_down) for panel in board.panels]
    if board.alerts is not None:
        panels = [*_alerts(board, drill_down), *panels]
    return page(
        name_of(board),
        f"Velocity: {board.job}",
        board.description or f"Reads {board.indices}.",
        panels,
        _variables([board], drill_down),
        _input(board.indices),
    )


def overview(boards: Sequence[Board], drill_down: str = DRILL_DOWN) -> Json:
    """A dashboard across all jobs, over a data source that reads the indices of all.

    It shows the first charts of each job and the alerts. Its links, and each panel's own, lead to the
    job's dashboard with the time and the filters that are chosen.
    """
    panels = []
    for board in boards:
        shown = [_panel(board, panel, drill_down) for panel in board.headlines]
        if board.alerts is not None:
            shown.append(_alerts(board, drill_down)[0])
        on = {
            "title": board.job,
            "url": f"{_url(board)}?${{__url_time_range}}&${{__all_variables}}",
        }
        panels += [
            panel | {"title": f"{board.job} · {panel['title']}", "links": [on]} for panel in shown
        ]
    return page(
        OVERVIEW,
        "Velocity: all jobs",
        "The first charts of each job; the links lead on, with the time and the filters.",
        panels,
        _variables(boards, drill_down),
        _input(",".join(dict.fromkeys(board.indices for board in boards))),
        links={board.job: _url(board) for board in boards},
    )


def name_of(board: Board) -> str:
    """Of a job's dashboard, and of its file."""
    return f"{OVERVIEW}-{board.job}"


def _url(board: Board) -> str:
    """Where Grafana has a job's dashboard, whatever path Grafana itself is at."""
    return f"/d/{uid(name_of(board))}"


def _input(indices: str) -> Mapping[str, str]:
    return {"name": INPUT, "label": f"Elasticsearch: {indices}", "pluginId": "elasticsearch"}


def _panel(board: Board, panel: Panel, drill_down: str) -> Json:
    about = {
        "title": panel.title,
        "description": panel.note(drill_down),
        "datasource": SOURCE,
    }
    query = _query(board.job, panel.metric, drill_down if drill_down in panel.dimensions else None)
    if not panel.chart:
        shown = [*panel.dimensions, *(value.name for value in panel.values)]
        fields = [f"dimensions.{name}" for name in panel.dimensions]
        fields += [value.field for value in panel.values]
        return about | _table(query, [*fields, "pane"], [*shown, "pane"])
    (value,) = panel.values
    panes = [("final", query, "")]
    if panel.provisional:
        panes = [
            ("final", f"{query} AND NOT pane:{EARLY}", ""),
            (PROVISIONAL, f"{query} AND pane:{EARLY}", f" ({PROVISIONAL})"),
        ]
    every = "auto" if panel.every is None else interval(panel.every)
    split = {f"dimensions.{name}": panel.dimensions[name] for name in panel.split}
    key = " · ".join(f"{{{{term {field}}}}}" for field in split) or value.name
    return about | {
        "type": "timeseries",
        "targets": [
            _target(ref, text, f"{key}{label}", split, value.over, value.field, every)
            for ref, text, label in panes
        ],
        "fieldConfig": _drawn("bars" if value.over == "sum" else "line", value.unit),
        "options": OPTIONS,
    }


def _alerts(board: Board, drill_down: str) -> list[Json]:
    dimensions = board.alerts or ()
    query = _query(board.job, ALERTS, drill_down if drill_down in dimensions else None)
    shown = ["values.status", "values.seconds"]
    over_time = {
        "title": "Alerts",
        "description": "Transactions that stay in a stage beyond its sla, by how they stand.",
        "datasource": SOURCE,
        "type": "timeseries",
        "targets": [
            _target(
                "alerts",
                query,
                "{{term values.status}}",
                {"values.status": "keyword"},
                "count",
                None,
                "auto",
            )
        ],
        "fieldConfig": _drawn("bars"),
        "options": OPTIONS,
    }
    stuck = {
        "title": "Stuck now",
        "description": "Alerts that have not ended.",
        "datasource": SOURCE,
    } | _table(
        f"{query} AND values.status:stuck",
        [*(f"dimensions.{name}" for name in dimensions), *shown],
        [*dimensions, "status", "seconds"],
    )
    return [over_time, stuck]


def _query(job: str, metric: str, drill_down: str | None) -> str:
    query = f'job:"{job}" AND metric:"{metric}"'
    if drill_down is not None:
        query += f" AND (dimensions.{drill_down}:${{{drill_down}:lucene}})"
    return query


def _target(
    ref: str,
    query: str,
    alias: str,
    split: Mapping[str, str],
    operation: str,
    field: str | None,
    every: str,
) -> Json:
    metric: Json = {"id": "1", "type": operation}
    if field is not None:
        metric["field"] = field
    order = "_count" if field is None else "1"
    terms = [
        {
            "id": str(i),
            "type": "terms",
            "field": name,
            "settings": {
                "size": TOP,
                "order": "desc",
                "orderBy": order,
                "min_doc_count": "1",
                **({"missing": NONE} if type_ == "keyword" else {}),
            },
        }
        for i, (name, type_) in enumerate(split.items(), 3)
    ]
    time = {
        "id": "2",
        "type": "date_histogram",
        "field": "@timestamp",
        "settings": {"interval": every, "min_doc_count": "0", "trimEdges": "0"},
    }
    return {
        "refId": ref,
        "datasource": SOURCE,
        "query": query,
        "alias": alias,
        "timeField": "@timestamp",
        "metrics": [metric],
        "bucketAggs": [*terms, time],
    }


def _table(query: str, fields: Sequence[str], names: Sequence[str]) -> Json:
    """The latest documents, by some of their fields."""
    order = ["@timestamp", *fields]
    return {
        "type": "table",
        "targets": [
            {
                "refId": "documents",
                "datasource": SOURCE,
                "query": query,
                "alias": "",
                "timeField": "@timestamp",
                "metrics": [{"id": "1", "type": "raw_data", "settings": {"size": ROWS}}],
                "bucketAggs": [],
            }
        ],
        "transformations": [
            {"id": "filterFieldsByName", "options": {"include": {"names": order}}},
            {
                "id": "organize",
                "options": {
                    "indexByName": {field: i for i, field in enumerate(order)},
                    "renameByName": dict(zip(fields, names, strict=True)),
                },
            },
        ],
        "fieldConfig": {"defaults": {}, "overrides": []},
        "options": {"showHeader": True},
    }


def _drawn(style: str, unit: str = "") -> Json:
    """Bars stand on each other, for they add up; what is provisional is dashed and pale."""
    bars = style == "bars"
    custom = {
        "drawStyle": style,
        "fillOpacity": 60 if bars else 0,
        "lineWidth": 1 if bars else 2,
        "showPoints": "auto",
        "stacking": {"group": "A", "mode": "normal" if bars else "none"},
    }
    pale = [
        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [6, 6]}},
        {"id": "custom.fillOpacity", "value": 15 if bars else 0},
    ]
    matcher = {"id": "byFrameRefID", "options": PROVISIONAL}
    return {
        "defaults": {"custom": custom, "unit": UNITS.get(unit, f"count:{unit}")},
        "overrides": [{"matcher": matcher, "properties": pale}],
    }


def _variables(boards: Sequence[Board], name: str) -> list[Json]:
    """The dimension that a dashboard is narrowed by; none, if none of the jobs has it."""
    jobs = [json.dumps(board.job) for board in boards if board.has(name)]
    if not jobs:
        return []
    field = f"dimensions.{name}"
    among = jobs[0] if len(jobs) == 1 else f"({' OR '.join(jobs)})"
    query = json.dumps({"find": "terms", "field": field, "query": f"job:{among}"})
    # Of all, those without a value too; the text is put after "dimensions.city:" as it is.
    return [variable(name, SOURCE, query, query, f"* OR (*:* NOT _exists_:{field})")]
