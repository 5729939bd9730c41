"""Panels as Kibana's Lens keeps them: columns over documents, and how they are drawn."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from velocity.pipelines.dashboards import EARLY, PROVISIONAL, Board, Panel, Value, interval
from velocity.transforms.transactions import ALERTS

LAYER: Final = "documents"
"""The one layer of each panel."""

TOP: Final = 10
"""Series in a chart: the keys with the most events."""
ROWS: Final = 100
"""In a table."""

Columns = Mapping[str, Mapping[str, Any]]
"""In the order in which they are computed: what documents are put together by comes first."""


def panel(board: Board, panel: Panel, drill_down: str) -> dict[str, Any]:
    """The attributes of a Lens object, without its references: ``LAYER`` reads the job's data view.

    A panel whose documents lack the dimension that the dashboard is narrowed by is left as it is,
    instead of empty.
    """
    about = (panel.title, panel.note(drill_down), _query(board.job, panel.metric))
    bound = drill_down in panel.dimensions
    if panel.chart:
        (value,) = panel.values
        columns = _chart_columns(panel, value)
        series = "bar_stacked" if value.over == "sum" else "line"
        return _attributes(*about, columns, "lnsXY", _xy(columns, series), bound)
    columns = _table_columns(panel)
    return _attributes(*about, columns, "lnsDatatable", _datatable(columns), bound)


def alerts_over_time(board: Board, drill_down: str) -> dict[str, Any]:
    """How many alerts began when, by how they stand."""
    columns = {
        "split": _terms(["values.status"], "status", TOP, other=False),
        "time": _histogram("auto", "since"),
        "alerts": {
            "label": "alerts",
            "customLabel": True,
            "dataType": "number",
            "operationType": "count",
            "sourceField": "___records___",
            "isBucketed": False,
            "scale": "ratio",
            "params": {"emptyAsNull": True},
        },
    }
    title, note = "Alerts", "Transactions that stay in a stage beyond its sla, by how they stand."
    query, bound = _query(board.job, ALERTS), drill_down in (board.alerts or ())
    return _attributes(title, note, query, columns, "lnsXY", _xy(columns, "bar_stacked"), bound)


def stuck_now(board: Board, drill_down: str) -> dict[str, Any]:
    """The alerts that have not ended, the oldest first."""
    assert board.alerts is not None
    first, second, *kept = board.alerts
    columns = {
        "transaction": _terms([f"dimensions.{first}"], first, ROWS, other=False, oldest="since"),
        "stage": _terms([f"dimensions.{second}"], second, TOP, other=False, oldest="since"),
        "since": _metric("min", "@timestamp", "since", "date"),
        **{name: _last(f"dimensions.{name}", name, "string") for name in kept},
    }
    query = f'{_query(board.job, ALERTS)} and values.status : "stuck"'
    about = ("Stuck now", "Alerts that have not ended, the oldest first.", query)
    bound = drill_down in board.alerts
    return _attributes(*about, columns, "lnsDatatable", _datatable(columns), bound)


# -- columns --------------------------------------------------------------------------------------


def _query(job: str, metric: str) -> str:
    return f'job : "{job}" and metric : "{metric}"'


def _chart_columns(panel: Panel, value: Value) -> dict[str, dict[str, Any]]:
    columns: dict[str, dict[str, Any]] = {}
    if panel.split:
        fields = [f"dimensions.{name}" for name in panel.split]
        # Values of keys that make no value together make none of all others either.
        columns["split"] = _terms(fields, ", ".join(panel.split), TOP, other=not value.per_key)
        if len(fields) == 1:
            columns["split"]["dataType"] = _lens_type(panel.dimensions[panel.split[0]])
    every = "auto" if panel.every is None else interval(panel.every)
    columns["window"] = _histogram(every, "window")
    for name, shown, pane in _panes(panel, value.name):
        columns[name] = _metric(value.over, value.field, shown, "number", pane)
        if value.unit:
            columns[name]["params"] |= {"format": _number(value)}
    return columns


def _table_columns(panel: Panel) -> dict[str, dict[str, Any]]:
    columns: dict[str, dict[str, Any]] = {}
    for name in panel.told_apart:
        columns[f"by-{name}"] = _terms([f"dimensions.{name}"], name, ROWS, other=False)
        columns[f"by-{name}"]["dataType"] = _lens_type(panel.dimensions[name])
    columns["latest"] = _metric("max", "@timestamp", "latest window", "date")
    for value in panel.values:
        type_ = _lens_type(value.type)
        for name, shown, pane in _panes(panel, value.name):
            columns[f"{name}-{value.name}"] = _last(value.field, shown, type_, pane)
    return columns


def _number(value: Value) -> dict[str, Any]:
    """With its unit behind it, which Lens takes as it is."""
    decimals = 0 if value.type == "long" else 2
    return {"id": "number", "params": {"decimals": decimals, "suffix": f" {value.unit}"}}


def _lens_type(type_: str) -> str:
    return {"keyword": "string", "long": "number", "double": "number"}.get(type_, type_)


def _panes(panel: Panel, name: str) -> Sequence[tuple[str, str, str | None]]:
    """The columns of a value: id, label, and the condition on the pane."""
    if not panel.provisional:
        return [("final", name, None)]
    return [
        ("final", name, f'not pane : "{EARLY}"'),
        (PROVISIONAL, f"{name} ({PROVISIONAL})", f'pane : "{EARLY}"'),
    ]


def _histogram(every: str, label: str) -> dict[str, Any]:
    return {
        "label": label,
        "customLabel": True,
        "dataType": "date",
        "operationType": "date_histogram",
        "sourceField": "@timestamp",
        "isBucketed": True,
        "scale": "interval",
        "params": {"interval": every, "includeEmptyRows": True, "dropPartials": False},
    }


def _terms(
    fields: Sequence[str], label: str, size: int, *, other: bool, oldest: str | None = None
) -> dict[str, Any]:
    """Of several fields each combination. Those of most events come first, or the oldest."""
    first, *more = fields
    by_events = _metric("sum", "events", "events", "number")
    order: dict[str, Any] = {"orderBy": {"type": "custom"}, "orderAgg": by_events}
    if oldest is not None:
        order = {"orderBy": {"type": "column", "columnId": oldest}}
    several: dict[str, Any] = {"parentFormat": {"id": "terms"}}
    if more:
        several = {"parentFormat": {"id": "multi_terms"}, "secondaryFields": more}
    return {
        "label": label,
        "customLabel": True,
        "dataType": "string",
        "operationType": "terms",
        "sourceField": first,
        "isBucketed": True,
        "scale": "ordinal",
        "params": {
            "size": size,
            **order,
            "orderDirection": "desc" if oldest is None else "asc",
            "otherBucket": other,
            "missingBucket": other,
            **several,
        },
    }


def _metric(
    operation: str, field: str, label: str, type_: str, condition: str | None = None
) -> dict[str, Any]:
    column = {
        "label": label,
        "customLabel": True,
        "dataType": type_,
        "operationType": operation,
        "sourceField": field,
        "isBucketed": False,
        "scale": "ratio",
        "params": {"emptyAsNull": True},
    }
    return column | _when(condition)


def _last(field: str, label: str, type_: str, condition: str | None = None) -> dict[str, Any]:
    column = {
        "label": label,
        "customLabel": True,
        "dataType": type_,
        "operationType": "last_value",
        "sourceField": field,
        "isBucketed": False,
        "scale": "ratio" if type_ == "date" else "ordinal",
        "params": {"sortField": "@timestamp", "showArrayValues": False},
    }
    return column | _when(condition)


def _when(condition: str | None) -> dict[str, Any]:
    return {} if condition is None else {"filter": {"query": condition, "language": "kuery"}}


# -- drawing --------------------------------------------------------------------------------------


def _xy(columns: Columns, series: str) -> dict[str, Any]:
    time = next(n for n, c in columns.items() if c["operationType"] == "date_histogram")
    layer: dict[str, Any] = {
        "layerId": LAYER,
        "layerType": "data",
        "seriesType": series,
        "xAccessor": time,
        "accessors": [name for name, column in columns.items() if not column["isBucketed"]],
    }
    if "split" in columns:
        layer["splitAccessor"] = "split"
    return {
        "legend": {"isVisible": True, "position": "right"},
        "valueLabels": "hide",
        "fittingFunction": "None",
        "preferredSeriesType": series,
        "axisTitlesVisibilitySettings": {"x": False, "yLeft": True, "yRight": True},
        "layers": [layer],
    }


def _datatable(columns: Columns) -> dict[str, Any]:
    return {
        "layerId": LAYER,
        "layerType": "data",
        "columns": [{"columnId": name, "isTransposed": False} for name in columns],
    }


def _attributes(
    title: str,
    description: str,
    query: str,
    columns: Columns,
    kind: str,
    visualization: Mapping[str, Any],
    bound: bool,
) -> dict[str, Any]:
    layer = {
        "columns": columns,
        "columnOrder": list(columns),
        "incompleteColumns": {},
        "ignoreGlobalFilters": not bound,
        "sampling": 1,
    }
    return {
        "title": title,
        "description": description,
        "visualizationType": kind,
        "state": {
            "visualization": visualization,
            "query": {"query": query, "language": "kuery"},
            "filters": [],
            "datasourceStates": {"formBased": {"layers": {LAYER: layer}}},
            "internalReferences": [],
            "adHocDataViews": {},
        },
    }
