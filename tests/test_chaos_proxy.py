"""The proxy of the chaos suite does what it counts, and nothing when it is calm."""

import doctest
import json
from collections.abc import Iterator

import pytest
import urllib3

from tests import chaos_faults, chaos_proxy, chaos_rounds
from tests.chaos_proxy import Fault, Proxy, refuse_items
from velocity.runners.embedded import DirectoryService

pytestmark = pytest.mark.embedded


@pytest.fixture
def service() -> Iterator[DirectoryService]:
    with DirectoryService({"providers": {"a": {"id": "a", "city": "Medan"}}}) as found:
        yield found


@pytest.fixture
def proxy(service: DirectoryService) -> Iterator[Proxy]:
    with Proxy(service.url, seed=1) as found:
        yield found


def ask(proxy: Proxy) -> urllib3.BaseHTTPResponse:
    return urllib3.request("GET", f"{proxy.url}/providers?ids=a", retries=False, timeout=10.0)


def test_a_calm_proxy_passes_everything_on(proxy: Proxy) -> None:
    answer = ask(proxy)
    assert (answer.status, answer.json()) == (200, [{"id": "a", "city": "Medan"}])
    assert answer.headers["Content-Type"] == "application/json"
    assert not proxy.struck


@pytest.mark.parametrize("fault", [Fault.TOO_MANY, Fault.UNAVAILABLE])
def test_a_refusal_never_reaches_the_server(
    proxy: Proxy, service: DirectoryService, fault: Fault
) -> None:
    proxy.misbehave(fault)
    assert ask(proxy).status == int(fault)
    assert service.calls == 0
    proxy.calm()
    assert ask(proxy).status == 200
    assert proxy.struck == {fault: 1}


@pytest.mark.parametrize(
    ("fault", "calls"), [(Fault.CUT_BEFORE, 0), (Fault.CUT_AFTER, 1), (Fault.CUT_MIDWAY, 1)]
)
def test_a_cut_connection_tells_nothing_of_what_the_server_did(
    proxy: Proxy, service: DirectoryService, fault: Fault, calls: int
) -> None:
    proxy.misbehave(fault)
    with pytest.raises(urllib3.exceptions.HTTPError):
        ask(proxy)
    assert service.calls == calls
    assert proxy.struck == {fault: 1}


def test_every_second_item_of_a_bulk_is_refused() -> None:
    body = json.dumps({"items": [{"index": {"status": 201}} for _ in range(4)]}).encode()
    refused = refuse_items(body)
    assert refused is not None
    statuses = [item["index"]["status"] for item in json.loads(refused)["items"]]
    assert statuses == [429, 201, 429, 201]


def test_what_is_no_bulk_is_passed_on_whole(proxy: Proxy) -> None:
    proxy.misbehave(Fault.TOO_MANY_ITEMS)
    assert ask(proxy).json() == [{"id": "a", "city": "Medan"}]
    assert not proxy.struck


def test_a_share_of_requests_is_struck(proxy: Proxy) -> None:
    proxy.misbehave(Fault.UNAVAILABLE, share=0.5)
    statuses = {ask(proxy).status for _ in range(40)}
    assert statuses == {200, 503}
    assert 0 < proxy.struck[Fault.UNAVAILABLE] < 40


def test_the_examples_of_the_suite_hold() -> None:
    for module in (chaos_proxy, chaos_faults, chaos_rounds):
        assert doctest.testmod(module).failed == 0
