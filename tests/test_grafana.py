"""Laws of Grafana's dashboards: every field is a document's, and panels show what Kibana's do."""

import dataclasses
import json
from typing import Any

import pytest

from tests.dashboard_jobs import board, fields_of, graph_of, jobs, metrics_of
from velocity.pipelines.grafana import INPUT, SOURCE, dashboard, overview
from velocity.pipelines.grafana_page import uid
from velocity.runners.operations import operations

NUMERIC = {"long", "double"}


def targets(made: Any) -> list[tuple[Any, Any]]:
    return [(panel, target) for panel in made["panels"] for target in panel["targets"]]


def metric_of(target: Any) -> str:
    return str(target["query"].split('metric:"')[1].split('"')[0])


@pytest.mark.parametrize("name", jobs())
def test_every_query_reads_fields_of_the_types_that_it_takes(name: str) -> None:
    graph = graph_of(jobs()[name])
    for panel, target in targets(dashboard(board(name))):
        fields = fields_of(graph, metric_of(target))
        assert fields[target["timeField"]] == "date"
        assert target["query"].startswith(f'job:"{name}" AND metric:"')
        (metric,) = target["metrics"]
        if metric["type"] == "raw_data":
            first, second = panel["transformations"]
            shown = first["options"]["include"]["names"]
            assert set(shown) <= fields.keys()
            assert list(second["options"]["indexByName"]) == shown
            assert set(second["options"]["renameByName"]) <= set(shown)
            continue
        if metric["type"] != "count":
            assert metric["type"] in ("sum", "min", "max")
            assert fields[metric["field"]] in NUMERIC
        *terms, time = target["bucketAggs"]
        assert time["type"] == "date_histogram"
        assert fields[time["field"]] == "date"
        for agg in terms:
            assert agg["type"] == "terms"
            assert fields[agg["field"]] in {"keyword", "boolean"}
            # text in place of what is missing is of no type but text's
            assert ("missing" in agg["settings"]) == (fields[agg["field"]] == "keyword")
            assert f"{{{{term {agg['field']}}}}}" in target["alias"]
        ids = [metric["id"], *(agg["id"] for agg in target["bucketAggs"])]
        assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", jobs())
def test_every_value_of_the_board_has_its_panel(name: str) -> None:
    made = dashboard(board(name))
    titles = [panel["title"] for panel in made["panels"]]
    alerts = ["Alerts", "Stuck now"] if name == "transactions" else []
    assert titles == [*alerts, *(panel.title for panel in board(name).panels)]


@pytest.mark.parametrize("name", jobs())
def test_variables_and_inputs_are_there_for_all_that_use_them(name: str) -> None:
    graph, made = graph_of(jobs()[name]), dashboard(board(name))
    assert [given["name"] for given in made["__inputs"]] == [INPUT]
    assert made["__inputs"][0]["pluginId"] == SOURCE["type"] == "elasticsearch"
    assert made["uid"] == f"velocity-{name}"
    variables = {variable["name"]: variable for variable in made["templating"]["list"]}
    with_city = {m for m in metrics_of(graph) if "dimensions.city" in fields_of(graph, m)}
    assert set(variables) == ({"city"} if with_city else set())
    for variable in variables.values():
        query = json.loads(variable["query"])
        assert query == {"find": "terms", "field": "dimensions.city", "query": f'job:"{name}"'}
    for panel, target in targets(made):
        assert panel["datasource"] == target["datasource"] == SOURCE
        narrowed = "(dimensions.city:${city:lucene})" in target["query"]
        assert narrowed == (metric_of(target) in with_city)


def test_early_panes_are_queries_of_their_own_called_provisional_and_dashed() -> None:
    made = dashboard(board("pharmacy_delivery"))
    panel = next(p for p in made["panels"] if p["title"] == "orders_by_city: orders")
    final, provisional = panel["targets"]
    assert final["query"].endswith(" AND NOT pane:early")
    assert provisional["query"].endswith(" AND pane:early")
    assert provisional["alias"] == f"{final['alias']} (provisional)"
    (override,) = panel["fieldConfig"]["overrides"]
    assert override["matcher"] == {"id": "byFrameRefID", "options": provisional["refId"]}
    never = next(p for p in made["panels"] if p["title"] == "orders_by_age_group: orders")
    assert len(never["targets"]) == 1


def test_numbers_have_the_units_that_the_job_gives_them_or_their_names_end_with() -> None:
    units = {
        panel["title"]: panel["fieldConfig"]["defaults"].get("unit")
        for panel in dashboard(board("pharmacy_delivery"))["panels"]
    }
    assert units["orders_by_city: orders"] == "short"
    assert units["orders_by_city: revenue"] == "count:IDR"
    assert units["deliveries_by_city: p95_minutes"] == "m"


def test_the_overview_shows_the_first_panels_of_each_job_as_the_job_does() -> None:
    boards = [board(name) for name in jobs()]
    shown = {panel["title"]: panel for panel in overview(boards)["panels"]}
    for each in boards:
        own = {f"{each.job} · {panel['title']}": panel for panel in dashboard(each)["panels"]}
        here = {title: shown.pop(title) for title in own.keys() & shown.keys()}
        assert len(here) == min(2, len(each.charts)) + (each.alerts is not None)
        for title, panel in here.items():
            assert (panel["targets"], panel["fieldConfig"]) == (
                own[title]["targets"],
                own[title]["fieldConfig"],
            )
    assert shown == {}


def test_the_overview_leads_to_each_job_with_the_time_and_the_filters() -> None:
    boards = [board(name) for name in jobs()]
    made = overview(boards)
    there = {f"/d/{dashboard(each)['uid']}": each.job for each in boards}
    links = [link for link in made["links"] if link["type"] == "link"]
    assert {link["url"]: link["title"] for link in links} == there
    assert all(link["keepTime"] and link["includeVars"] for link in links)
    for panel in made["panels"]:
        [on] = panel["links"]
        url, _, kept = on["url"].partition("?")
        assert there[url] == on["title"] == panel["title"].partition(" · ")[0]
        assert kept == "${__url_time_range}&${__all_variables}"
    [variable] = made["templating"]["list"]
    query = json.loads(variable["query"])["query"]
    assert query.startswith("job:(")
    assert all((f'"{each.job}"' in query) == each.has("city") for each in boards)


def test_a_job_of_a_long_name_is_linked_by_its_dashboards_own_id() -> None:
    long = dataclasses.replace(board("orders"), job="o" * 60)
    assert overview([long])["links"][0]["url"] == f"/d/{dashboard(long)['uid']}"
    assert dashboard(long)["uid"] == uid(f"velocity-{'o' * 60}")


@pytest.mark.parametrize("name", [*jobs(), None, "all"])
def test_panels_have_numbers_and_places_of_their_own(name: str | None) -> None:
    if name == "all":
        made = overview([board(each) for each in jobs()])
    else:
        made = operations() if name is None else dashboard(board(name))
    assert len({panel["id"] for panel in made["panels"]}) == len(made["panels"])
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in made["panels"]}
    assert len(places) == len(made["panels"])
    for panel in made["panels"]:
        refs = [target["refId"] for target in panel["targets"]]
        assert len(set(refs)) == len(refs)
    assert json.loads(json.dumps(made)) == made
