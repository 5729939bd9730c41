"""Kibana's saved objects for jobs: data views, Lens panels and dashboards, as its import takes them.

The shapes are those that Kibana 8.9 and later export; each later one brings them up to its own.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from velocity.pipelines import lens
from velocity.pipelines.dashboards import DRILL_DOWN, Board

Object = dict[str, Any]

OVERVIEW: Final = "velocity"
"""The id of what shows all jobs; those of one job have its name behind."""

_CORE: Final = "8.8.0"
_VERSIONS: Final = {"index-pattern": "8.0.0", "lens": "8.9.0", "dashboard": "8.7.0"}
"""Of each type's shape; Kibana migrates objects from there to its own."""

_COLUMNS: Final = 48
"""Of the grid that a dashboard's panels lie on."""
_WIDTH: Final = 24
_HEIGHT: Final = 12
_LINKS_HEIGHT: Final = 4


class _Placed(NamedTuple):
    """A Lens object on a dashboard."""

    id: str
    title: str


def saved_objects(board: Board, drill_down: str = DRILL_DOWN) -> list[Object]:
    """A job's data view, its panels, and its dashboard.

    Ids follow from the names of the job, its metrics and their values: imported again they replace
    what was there. The dashboard can be narrowed by the dimension ``drill_down``.
    """
    view = _data_view(id_of(board), f"Velocity: {board.job}", board.indices)
    panels = _panels(board, drill_down)
    placed = [_Placed(panel["id"], panel["attributes"]["title"]) for panel in panels]
    dashboard = _dashboard(
        id_of(board),
        f"Velocity: {board.job}",
        board.description,
        placed,
        controls=[drill_down] if board.has(drill_down) else [],
    )
    return [view, *panels, dashboard]


def overview(boards: Sequence[Board], drill_down: str = DRILL_DOWN) -> list[Object]:
    """A data view and a dashboard across all jobs; their own objects go with it.

    It shows the first charts of each job and the alerts, and leads to each job's dashboard with
    the time and the filters that are chosen.
    """
    indices = ",".join(dict.fromkeys(board.indices for board in boards))
    placed = []
    for board in boards:
        names = [panel.name for panel in board.headlines]
        titles = [panel.title for panel in board.headlines]
        if board.alerts is not None:
            names, titles = [*names, "alerts"], [*titles, "Alerts"]
        for name, title in zip(names, titles, strict=True):
            placed.append(_Placed(f"{id_of(board)}-{name}", f"{board.job} · {title}"))
    dashboard = _dashboard(
        OVERVIEW,
        "Velocity: all jobs",
        "The first charts of each job; the links lead on, with the time and the filters.",
        placed,
        controls=[drill_down] if any(board.has(drill_down) for board in boards) else [],
        links={id_of(board): board.job for board in boards},
    )
    return [_data_view(OVERVIEW, "Velocity: all jobs", indices), dashboard]


def ndjson(objects: Iterable[Object]) -> str:
    """An object a line, as Kibana's import takes them.

    >>> ndjson([{"type": "lens", "id": "a"}, {"type": "lens", "id": "b"}])
    '{"type": "lens", "id": "a"}\\n{"type": "lens", "id": "b"}\\n'
    """
    return "".join(f"{json.dumps(found, ensure_ascii=False)}\n" for found in objects)


def id_of(board: Board) -> str:
    """Of a job's dashboard, and of its data view."""
    return f"{OVERVIEW}-{board.job}"


def _panels(board: Board, drill_down: str) -> list[Object]:
    drawn = {panel.name: lens.panel(board, panel, drill_down) for panel in board.panels}
    if board.alerts is not None:
        # No metric of such a job may have this name.
        drawn = {
            "alerts": lens.alerts_over_time(board, drill_down),
            "alerts-stuck": lens.stuck_now(board, drill_down),
        } | drawn
    reads = [
        _reference("index-pattern", id_of(board), f"indexpattern-datasource-layer-{lens.LAYER}")
    ]
    return [
        _object("lens", f"{id_of(board)}-{name}", attributes, reads)
        for name, attributes in drawn.items()
    ]


def _data_view(id_: str, name: str, indices: str) -> Object:
    attributes = {
        "title": indices,
        "name": name,
        "timeFieldName": "@timestamp",
        "allowNoIndex": True,  # dashboards may be there before the first document
        "fields": "[]",
        "fieldAttrs": "{}",
        "fieldFormatMap": "{}",
        "runtimeFieldMap": "{}",
        "sourceFilters": "[]",
        "typeMeta": "{}",
    }
    return _object("index-pattern", id_, attributes, [])


def _dashboard(
    id_: str,
    title: str,
    description: str,
    placed: Sequence[_Placed],
    *,
    controls: Sequence[str],
    links: Mapping[str, str] | None = None,
) -> Object:
    panels: list[Object] = []
    references: list[Object] = []
    if links:
        panel, references = _links(links)
        panels.append(panel)
    top = _LINKS_HEIGHT if links else 0
    for i, (lens_id, panel_title) in enumerate(placed):
        row, column = divmod(i * _WIDTH, _COLUMNS)
        place = {"x": column, "y": top + row * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
        panels.append(
            _panel("lens", lens_id, place, {"enhancements": {}})
            | {"title": panel_title, "panelRefName": f"panel_{lens_id}"}
        )
        references.append(_reference("lens", lens_id, f"{lens_id}:panel_{lens_id}"))
    attributes: dict[str, Any] = {
        "title": title,
        "description": description,
        "panelsJSON": json.dumps(panels),
        "optionsJSON": json.dumps(
            {
                "useMargins": True,
                "syncColors": True,
                "syncCursor": True,
                "syncTooltips": False,
                "hidePanelTitles": False,
            }
        ),
        "version": 1,
        "timeRestore": True,
        "timeFrom": "now-24h",
        "timeTo": "now",
        "refreshInterval": {"pause": False, "value": 10_000},
        "kibanaSavedObjectMeta": {
            "searchSourceJSON": json.dumps(
                {"query": {"query": "", "language": "kuery"}, "filter": []}
            )
        },
    }
    if controls:
        attributes["controlGroupInput"] = _controls(controls)
        references += [
            _reference("index-pattern", id_, f"controlGroup_{name}:optionsListDataView")
            for name in controls
        ]
    return _object("dashboard", id_, attributes, references)


def _panel(kind: str, id_: str, place: Mapping[str, int], config: Object) -> Object:
    return {
        "version": "8.11.0",
        "type": kind,
        "panelIndex": id_,
        "gridData": {**place, "i": id_},
        "embeddableConfig": config,
    }


def _links(links: Mapping[str, str]) -> tuple[Object, list[Object]]:
    """A panel that leads to other dashboards by their ids, and its references."""
    items, references = [], []
    for order, (dashboard, label) in enumerate(links.items()):
        name = f"link_{dashboard}_dashboard"
        items.append(
            {
                "type": "dashboardLink",
                "id": dashboard,
                "label": label,
                "order": order,
                "destinationRefName": name,
                "options": {
                    "openInNewTab": False,
                    "useCurrentDateRange": True,
                    "useCurrentFilters": True,
                },
            }
        )
        references.append(_reference("dashboard", dashboard, f"links:{name}"))
    config = {"attributes": {"layout": "horizontal", "links": items}, "enhancements": {}}
    place = {"x": 0, "y": 0, "w": _COLUMNS, "h": _LINKS_HEIGHT}
    return _panel("links", "links", place, config), references


def _controls(dimensions: Sequence[str]) -> Object:
    """Lists above the panels; their references say which data view they take values from."""
    panels = {
        name: {
            "order": order,
            "width": "medium",
            "grow": True,
            "type": "optionsListControl",
            "explicitInput": {
                "id": name,
                "title": name,
                "fieldName": f"dimensions.{name}",
                "enhancements": {},
            },
        }
        for order, name in enumerate(dimensions)
    }
    ignored = ("ignoreFilters", "ignoreQuery", "ignoreTimerange", "ignoreValidations")
    return {
        "controlStyle": "oneLine",
        "chainingSystem": "HIERARCHICAL",
        "panelsJSON": json.dumps(panels),
        "ignoreParentSettingsJSON": json.dumps(dict.fromkeys(ignored, False)),
    }


def _object(type_: str, id_: str, attributes: Object, references: Sequence[Object]) -> Object:
    return {
        "type": type_,
        "id": id_,
        "attributes": attributes,
        "references": list(references),
        "coreMigrationVersion": _CORE,
        "typeMigrationVersion": _VERSIONS[type_],
        "managed": False,
    }


def _reference(type_: str, id_: str, name: str) -> Object:
    return {"type": type_, "id": id_, "name": name}
