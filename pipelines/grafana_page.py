"""A page of Grafana: panels in a grid, variables, and the data source that its importer chooses."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

Json = dict[str, Any]

SCHEMA: Final = 39
"""Of the dashboard's JSON: Grafana 10.4. Later ones migrate it."""

OPTIONS: Final = {
    "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
    "tooltip": {"mode": "multi", "sort": "desc"},
}
"""Of charts over time."""

_COLUMNS: Final = 24
_WIDTH: Final = 12
_HEIGHT: Final = 9


def page(
    name: str,
    title: str,
    description: str,
    panels: Sequence[Json],
    variables: Sequence[Json],
    source: Mapping[str, str],
    links: Mapping[str, str] | None = None,
) -> Json:
    """A dashboard of panels, two in a row, over a data source that is chosen as it is imported.

    ``links`` lead to other dashboards, by their titles and addresses, with time and variables.
    """
    placed = [
        {
            "id": i + 1,
            **panel,
            "gridPos": {
                "x": i * _WIDTH % _COLUMNS,
                "y": i * _WIDTH // _COLUMNS * _HEIGHT,
                "w": _WIDTH,
                "h": _HEIGHT,
            },
        }
        for i, panel in enumerate(panels)
    ]
    plugin = source["pluginId"]
    return {
        "__inputs": [
            {**source, "description": "", "type": "datasource", "pluginName": plugin.title()}
        ],
        "__requires": [
            {"type": "grafana", "id": "grafana", "name": "Grafana", "version": "10.4.0"},
            {"type": "datasource", "id": plugin, "name": plugin.title(), "version": "1.0.0"},
        ],
        "uid": uid(name),
        "title": title,
        "description": description,
        "tags": ["velocity"],
        "schemaVersion": SCHEMA,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-24h", "to": "now"},
        "timezone": "",
        "annotations": {"list": []},
        "links": [
            *(_link(title, url=url, type="link") for title, url in (links or {}).items()),
            _link("Velocity", type="dashboards", tags=["velocity"], asDropdown=True),
        ],
        "templating": {"list": list(variables)},
        "panels": placed,
    }


def uid(name: str) -> str:
    """Of a dashboard, always the same: its name, or if that is too long a hash.

    >>> uid("velocity-orders"), len(uid("velocity-" + 64 * "x"))
    ('velocity-orders', 40)
    """
    return name if len(name) <= 40 else hashlib.sha256(name.encode()).hexdigest()[:40]


def _link(title: str, **more: Any) -> Json:
    return {"title": title, "icon": "dashboard", "includeVars": True, "keepTime": True, **more}


def variable(name: str, source: Mapping[str, str], query: Any, text: str, every: str) -> Json:
    """A list to choose from; ``every`` stands for all of it, and is put in as it is."""
    return {
        "name": name,
        "label": name,
        "type": "query",
        "datasource": dict(source),
        "query": query,
        "definition": text,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": every,
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "options": [],
    }
