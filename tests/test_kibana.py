"""Laws of Kibana's saved objects: whatever one names is there, and every field is a document's."""

import json
from typing import Any

import pytest

from tests.dashboard_jobs import board, fields_of, graph_of, jobs, metrics_of
from velocity.pipelines.dashboards import board_of
from velocity.pipelines.job import Job
from velocity.pipelines.kibana import ndjson, overview, saved_objects
from velocity.pipelines.lens import LAYER
from velocity.pipelines.templates import setup_of
from velocity.transforms.transactions import ALERTS

NUMERIC = {"long", "double"}
LENS_TYPES = {"keyword": "string", "long": "number", "double": "number"}
TYPED = {"index-pattern": (8, 0, 0), "lens": (8, 9, 0), "dashboard": (8, 7, 0)}
"""The last migrations before Kibana's types had model versions: what 8.9 and all later ones read."""


def objects_of(job: Job) -> list[dict[str, Any]]:
    return saved_objects(board_of(graph_of(job)))


def everything() -> list[dict[str, Any]]:
    boards = [board(name) for name in jobs()]
    return [o for each in boards for o in saved_objects(each)] + overview(boards)


def key(found: dict[str, Any]) -> tuple[str, str]:
    return found["type"], found["id"]


def lenses(objects: list[dict[str, Any]]) -> dict[str, Any]:
    return {found["id"]: found["attributes"] for found in objects if found["type"] == "lens"}


def layer(attributes: Any) -> Any:
    return attributes["state"]["datasourceStates"]["formBased"]["layers"][LAYER]


def names_in_dashboard(attributes: Any) -> set[str]:
    """The names of references that a dashboard's panels and controls look for, as Kibana does."""
    names = set()
    for panel in json.loads(attributes["panelsJSON"]):
        if "panelRefName" in panel:
            names.add(f"{panel['panelIndex']}:{panel['panelRefName']}")
        for link in panel["embeddableConfig"].get("attributes", {}).get("links", []):
            names.add(f"{panel['panelIndex']}:{link['destinationRefName']}")
    controls = attributes.get("controlGroupInput", {"panelsJSON": "{}"})
    for name, control in json.loads(controls["panelsJSON"]).items():
        assert control["type"] == "optionsListControl"
        assert control["explicitInput"]["id"] == name
        names.add(f"controlGroup_{name}:optionsListDataView")
    return names


def test_every_reference_is_looked_for_and_leads_to_an_object_of_its_type() -> None:
    objects = everything()
    there = [key(found) for found in objects]
    assert len(set(there)) == len(there)
    for found in objects:
        names = [reference["name"] for reference in found["references"]]
        assert len(set(names)) == len(names)
        assert {key(reference) for reference in found["references"]} <= set(there)
        wanted: set[str] = set()
        if found["type"] == "lens":
            layers = found["attributes"]["state"]["datasourceStates"]["formBased"]["layers"]
            wanted = {f"indexpattern-datasource-layer-{name}" for name in layers}
        if found["type"] == "dashboard":
            wanted = names_in_dashboard(found["attributes"])
        assert set(names) == wanted


def test_a_job_needs_no_object_of_another() -> None:
    for name in jobs():
        objects = saved_objects(board(name))
        there = {key(found) for found in objects}
        assert {key(r) for found in objects for r in found["references"]} <= there


@pytest.mark.parametrize("name", jobs())
def test_every_column_reads_a_field_of_the_type_that_its_operation_takes(name: str) -> None:
    graph = graph_of(jobs()[name])
    for id_, attributes in lenses(saved_objects(board(name))).items():
        metric = metric_of(attributes)
        fields = fields_of(graph, metric)
        columns = layer(attributes)["columns"]
        ordering = [c["params"]["orderAgg"] for c in columns.values() if "orderAgg" in c["params"]]
        for column in [*columns.values(), *ordering]:
            check(column, columns, fields, id_)


def metric_of(attributes: Any) -> str:
    """The one metric that a panel's query lets through."""
    query = attributes["state"]["query"]
    assert query["language"] == "kuery"
    return str(query["query"].split('metric : "')[1].split('"')[0])


def check(column: Any, columns: Any, fields: dict[str, str], where: str) -> None:
    field, params = column["sourceField"], column["params"]
    match column["operationType"]:
        case "count":
            assert field == "___records___"
        case "sum":
            assert fields[field] in NUMERIC, where
        case "min" | "max":
            assert fields[field] in {*NUMERIC, "date"}, where
        case "date_histogram":
            assert fields[field] == "date", where
        case "last_value":
            assert fields[params["sortField"]] == "date"
            assert column["dataType"] == LENS_TYPES.get(fields[field], fields[field]), where
        case "terms":
            for each in [field, *params.get("secondaryFields", [])]:
                assert fields[each] in {"keyword", "boolean"}, where
            several = params["parentFormat"]["id"] == "multi_terms"
            assert several == ("secondaryFields" in params)
            order = params["orderBy"]
            if order["type"] == "column":
                assert not columns[order["columnId"]]["isBucketed"]
            else:
                assert order == {"type": "custom"}
                assert "orderAgg" in params
            assert params["otherBucket"] or not params["missingBucket"]
        case other:
            pytest.fail(f"{where}: {other}")
    assert column["isBucketed"] == (column["operationType"] in ("terms", "date_histogram"))
    if "filter" in column:
        assert column["filter"]["language"] == "kuery"
        assert column["filter"]["query"] in ('pane : "early"', 'not pane : "early"')
        assert fields["pane"] == "keyword"


@pytest.mark.parametrize("name", jobs())
def test_what_is_drawn_are_the_columns_that_there_are(name: str) -> None:
    for attributes in lenses(saved_objects(board(name))).values():
        columns = layer(attributes)["columns"]
        assert layer(attributes)["columnOrder"] == list(columns)
        buckets = [column["isBucketed"] for column in columns.values()]
        assert buckets == sorted(buckets, reverse=True)  # Lens wants those first
        visualization = attributes["state"]["visualization"]
        if attributes["visualizationType"] == "lnsDatatable":
            assert visualization["layerId"] == LAYER
            assert [c["columnId"] for c in visualization["columns"]] == list(columns)
            continue
        assert attributes["visualizationType"] == "lnsXY"
        (drawn,) = visualization["layers"]
        assert drawn["layerId"] == LAYER
        split = [drawn["splitAccessor"]] if "splitAccessor" in drawn else []
        assert sorted([drawn["xAccessor"], *split, *drawn["accessors"]]) == sorted(columns)
        assert columns[drawn["xAccessor"]]["operationType"] == "date_histogram"


def test_the_shapes_have_the_versions_of_what_8_9_and_later_read() -> None:
    for found in everything():
        assert found.keys() == {
            "type",
            "id",
            "attributes",
            "references",
            "coreMigrationVersion",
            "typeMigrationVersion",
            "managed",
        }
        assert found["coreMigrationVersion"] == "8.8.0"
        version = tuple(map(int, found["typeMigrationVersion"].split(".")))
        assert version == TYPED[found["type"]]


def test_early_panes_have_a_column_of_their_own_called_provisional() -> None:
    panels = lenses(saved_objects(board("pharmacy_delivery")))
    columns = layer(panels["velocity-pharmacy_delivery-orders_by_city-orders"])["columns"]
    assert columns["final"]["filter"]["query"] == 'not pane : "early"'
    assert columns["provisional"]["filter"]["query"] == 'pane : "early"'
    assert columns["provisional"]["label"] == "orders (provisional)"
    never_early = layer(panels["velocity-pharmacy_delivery-orders_by_age_group-orders"])["columns"]
    assert "provisional" not in never_early
    assert "filter" not in never_early["final"]


def test_numbers_have_their_units_behind_them() -> None:
    panels = lenses(saved_objects(board("pharmacy_delivery")))
    name = "velocity-pharmacy_delivery-"
    formats = {
        value: layer(panels[name + value])["columns"]["provisional"]["params"].get("format")
        for value in ("orders_by_city-orders", "orders_by_city-revenue")
    }
    assert formats["orders_by_city-orders"] is None
    assert formats["orders_by_city-revenue"] == {
        "id": "number",
        "params": {"decimals": 0, "suffix": " IDR"},
    }
    longest = layer(panels[f"{name}deliveries_by_city-mean_minutes"])["columns"]["final"]
    assert longest["params"]["format"]["params"] == {"decimals": 2, "suffix": " min"}


def test_what_does_not_add_up_is_never_summed() -> None:
    panels = lenses(saved_objects(board("pharmacy_delivery")))
    name = "velocity-pharmacy_delivery-deliveries_by_city"
    operations = {
        value: layer(panels[f"{name}-{value}"])["columns"]["final"]["operationType"]
        for value in ("deliveries", "late", "mean_minutes", "p95_minutes", "longest_minutes")
    }
    assert operations == {
        "deliveries": "sum",
        "late": "sum",
        "mean_minutes": "max",
        "p95_minutes": "max",
        "longest_minutes": "max",
    }
    by_key = layer(panels[f"{name}-p95_minutes"])["columns"]["split"]
    assert [by_key["sourceField"], *by_key["params"]["secondaryFields"]] == [
        "dimensions.city",
        "dimensions.tier",
    ]
    assert not by_key["params"]["otherBucket"]


def test_another_metric_adds_its_panels_and_changes_no_other_object_but_the_dashboard() -> None:
    job = jobs()["pharmacy_delivery"]
    more = job.metrics[0].model_copy(update={"name": "again", "values": {"orders": "count()"}})
    before = {key(o): o for o in objects_of(job)}
    after = {
        key(o): o for o in objects_of(job.model_copy(update={"metrics": [*job.metrics, more]}))
    }
    assert after.keys() - before.keys() == {("lens", "velocity-pharmacy_delivery-again-orders")}
    dashboard = ("dashboard", "velocity-pharmacy_delivery")
    assert {k for k in before if before[k] != after[k]} == {dashboard}
    panels = [json.loads(o[dashboard]["attributes"]["panelsJSON"]) for o in (before, after)]
    assert panels[1][:-1] == panels[0]
    assert panels[1][-1]["panelIndex"] == "velocity-pharmacy_delivery-again-orders"


def test_panels_lie_on_the_grid_side_by_side() -> None:
    for found in everything():
        if found["type"] != "dashboard":
            continue
        cells: set[tuple[int, int]] = set()
        for panel in json.loads(found["attributes"]["panelsJSON"]):
            grid = panel["gridData"]
            assert grid["i"] == panel["panelIndex"]
            assert grid["x"] + grid["w"] <= 48
            own = {
                (grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])
            }
            assert not own & cells
            cells |= own


@pytest.mark.parametrize("name", jobs())
def test_a_dashboard_is_narrowed_by_city_and_what_has_none_is_left_as_it_is(name: str) -> None:
    graph = graph_of(jobs()[name])
    objects = saved_objects(board(name))
    (dashboard,) = (o["attributes"] for o in objects if o["type"] == "dashboard")
    with_city = {m for m in metrics_of(graph) if "dimensions.city" in fields_of(graph, m)}
    if not with_city:
        assert "controlGroupInput" not in dashboard
        return
    controls = json.loads(dashboard["controlGroupInput"]["panelsJSON"])
    assert controls["city"]["explicitInput"]["fieldName"] == "dimensions.city"
    panels = {p.name: p for p in board(name).panels}
    for id_, attributes in lenses(objects).items():
        panel = panels.get(id_.removeprefix(f"velocity-{name}-"))
        bound = "city" in (panel.dimensions if panel else graph.job.transactions.by)  # type: ignore[union-attr]
        assert layer(attributes)["ignoreGlobalFilters"] != bound


def test_the_data_view_reads_the_alias_or_else_all_indices_of_the_job() -> None:
    titles = {
        o["id"]: o["attributes"]["title"] for o in everything() if o["type"] == "index-pattern"
    }
    assert titles["velocity-transactions"] == "velocity-transactions"
    setup = setup_of(graph_of(jobs()["orders"]))
    assert titles["velocity-orders"] == setup.pattern.wildcard("orders") == "orders-*-*"
    assert set(titles["velocity"].split(",")) == {
        title for id_, title in titles.items() if id_ != "velocity"
    }


def test_alerts_have_panels_of_their_own_and_come_first() -> None:
    objects = saved_objects(board("transactions"))
    (dashboard,) = (o["attributes"] for o in objects if o["type"] == "dashboard")
    first, second, *_ = json.loads(dashboard["panelsJSON"])
    assert first["panelIndex"] == "velocity-transactions-alerts"
    assert second["panelIndex"] == "velocity-transactions-alerts-stuck"
    stuck = lenses(objects)["velocity-transactions-alerts-stuck"]
    assert metric_of(stuck) == ALERTS
    assert 'values.status : "stuck"' in stuck["state"]["query"]["query"]
    shown = {column["sourceField"] for column in layer(stuck)["columns"].values()}
    assert shown == {"dimensions.transaction", "dimensions.stage", "@timestamp", "dimensions.city"}


def test_the_overview_leads_to_each_job_with_the_time_and_the_filters() -> None:
    (dashboard,) = (
        o for o in overview([board(name) for name in jobs()]) if o["type"] == "dashboard"
    )
    (links,) = (
        panel["embeddableConfig"]["attributes"]["links"]
        for panel in json.loads(dashboard["attributes"]["panelsJSON"])
        if panel["type"] == "links"
    )
    assert [link["label"] for link in links] == list(jobs())
    for link in links:
        assert link["options"]["useCurrentFilters"]
        assert link["options"]["useCurrentDateRange"]


def test_an_object_is_a_line_of_json() -> None:
    objects = everything()
    assert [json.loads(line) for line in ndjson(objects).splitlines()] == objects


def test_the_same_job_gives_the_same_bytes() -> None:
    assert ndjson(everything()) == ndjson(everything())
