"""Enrichment: the same rows however a stream is cut into batches, and nothing vanishes."""

import json
import pickle
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.testing.util import assert_that, equal_to
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.records import (
    DEAD_LETTERS,
    MESSAGE,
    MESSAGES,
    TIMESTAMP,
    Answers,
    WithDeadLetters,
)
from velocity.io.rest import RestLookup
from velocity.transforms.enrich import (
    Added,
    Enrich,
    Enriched,
    Enrichment,
    EnrichmentFailed,
    OnError,
    OnMissing,
    enrich,
    enriched_schema,
)
from velocity.transforms.fields import TYPES

NOW = datetime(2026, 1, 1, tzinfo=UTC)
CITY = {"city": Added("address.city")}


def clock() -> datetime:
    return NOW


class Known:
    """A lookup of what is given; it fails for keys in ``fails``, and remembers what it was asked."""

    def __init__(self, objects: Mapping[str, Mapping[str, Any]], fails: Sequence[str] = ()) -> None:
        self.objects = objects
        self.fails = fails
        self.asked: list[str] = []

    def lookup(self, keys: Sequence[str]) -> Answers:
        self.asked += keys
        failed = {key: "the service is down" for key in keys if key in self.fails}
        found = {
            key: self.objects[key] for key in keys if key in self.objects and key not in failed
        }
        return Answers(found, frozenset(keys) - found.keys() - failed.keys(), failed, {"calls": 1})


def batch(keys: Sequence[Any], kind: pa.DataType | None = None) -> pa.RecordBatch:
    """Rows numbered in ``n`` with a message each, whose offset is the number too."""
    messages = [
        {"topic": "events", "partition": 0, "offset": n, "value": b"{}"} for n in range(len(keys))
    ]
    return pa.RecordBatch.from_arrays(
        [
            pa.array(keys, kind or pa.string()),
            pa.array(range(len(keys)), pa.int64()),
            pa.array(messages, pa.struct(list(MESSAGES))),
        ],
        ["key", "n", MESSAGE],
    )


def enriched(keys: Sequence[Any], answer: Any, type: str = "string") -> Enriched:
    """One column ``added`` from the field ``f`` of the answer for the key ``patient-1``."""
    lookup = Known({"patient-1": {"f": answer}})
    return enrich(batch(keys), lookup, Enrichment("key", {"added": Added("f", type)}), clock)


KEYS = st.lists(st.none() | st.sampled_from("abcdefgh"), max_size=30)
OBJECTS: dict[str, dict[str, Any]] = {
    "a": {"address": {"city": "Bandung"}, "tier": 1},
    "b": {"address": {"city": "Medan"}, "tier": None},
    "c": {"address": None, "tier": 3},
    "d": {"tier": 4},
    "e": {"address": {"city": 7}, "tier": 5},
    "f": {"address": {"city": "Bogor"}, "tier": "six"},
}
FAILS = ("g",)


def joined(
    keys: Sequence[str | None], on_missing: OnMissing, on_error: OnError
) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """The join row by row in plain Python: rows, and the offset and cause of dead letters."""
    rows, dead = [], []
    for n, key in enumerate(keys):
        if key in ("e", "f"):
            dead.append((n, "wrong_answer"))
        elif key in FAILS and on_error == "dead_letter":
            dead.append((n, "service_failed"))
        elif key == "h" and on_missing == "dead_letter":
            dead.append((n, "key_not_found"))
        else:
            answer: Mapping[str, Any] = OBJECTS.get(key or "", {})
            city = (answer.get("address") or {}).get("city")
            rows.append({"key": key, "n": n, "city": city, "tier": answer.get("tier")})
    return rows, dead


@given(
    keys=KEYS,
    cuts=st.sets(st.integers(0, 30)),
    on_missing=st.sampled_from(["null", "dead_letter"]),
    on_error=st.sampled_from(["null", "dead_letter"]),
)
def test_batches_cut_anywhere_are_enriched_as_one_and_as_a_plain_join(
    keys: list[str | None], cuts: set[int], on_missing: OnMissing, on_error: OnError
) -> None:
    add = {**CITY, "tier": Added("tier", "int64")}
    enrichment = Enrichment("key", add, on_missing, on_error)
    lookup = Known(OBJECTS, FAILS)
    whole = enrich(batch(keys), lookup, enrichment, clock)
    edges = sorted({0, len(keys)} | {cut for cut in cuts if cut < len(keys)})
    parts = [
        enrich(batch(keys).slice(start, end - start), lookup, enrichment, clock)
        for start, end in pairwise(edges)
    ]
    rows = pa.Table.from_batches([part.rows for part in parts], whole.rows.schema)
    letters = pa.Table.from_batches([part.dead_letters for part in parts], DEAD_LETTERS)
    assert rows.equals(pa.Table.from_batches([whole.rows]))
    assert letters.equals(pa.Table.from_batches([whole.dead_letters]))

    expected_rows, expected_dead = joined(keys, on_missing, on_error)
    assert rows.drop_columns([MESSAGE]).to_pylist() == expected_rows
    assert [message["offset"] for message in rows[MESSAGE].to_pylist()] == [
        row["n"] for row in expected_rows
    ]
    causes = zip(letters["offset"].to_pylist(), letters["cause"].to_pylist(), strict=True)
    assert list(causes) == expected_dead


def test_each_distinct_key_is_asked_once_and_null_never() -> None:
    lookup = Known(OBJECTS)
    enrich(batch(["b", None, "a", "b", "a", None]), lookup, Enrichment("key", CITY))
    assert sorted(lookup.asked) == ["a", "b"]


@pytest.mark.parametrize(
    ("keys", "kind", "asked"),
    [
        ([7, None, 7], pa.int64(), ["7"]),
        ([True, False], pa.bool_(), ["true", "false"]),
        (["a", "b"], pa.large_string(), ["a", "b"]),
        (["a", "b", "a"], pa.dictionary(pa.int8(), pa.string()), ["a", "b"]),
        ([None, None], pa.null(), []),
        ([], pa.string(), []),
    ],
)
def test_keys_of_any_plain_type_are_asked_as_text(
    keys: list[Any], kind: pa.DataType, asked: list[str]
) -> None:
    lookup = Known({"7": {"address": {"city": "Bandung"}}})
    result = enrich(batch(keys, kind), lookup, Enrichment("key", CITY))
    assert lookup.asked == asked
    assert result.rows["city"].to_pylist() == ["Bandung" if key == 7 else None for key in keys]
    assert result.rows["key"].type == kind


@pytest.mark.parametrize(
    ("type", "answer", "value"),
    [
        ("string", "Yogyakarta", "Yogyakarta"),
        ("string", "中\U0001f600", "中\U0001f600"),
        ("int64", -(2**63), -(2**63)),
        ("double", 4, 4.0),
        ("double", 4.5, 4.5),
        ("bool", False, False),
        ("timestamp", "2026-01-01T07:00:00.1239+07:00", NOW.replace(microsecond=123_000)),
        ("timestamp", "2026-01-01t00:00:00z", NOW),
        ("timestamp", "1969-12-31T23:59:59.9999Z", datetime.fromtimestamp(-0.001, UTC)),
        ("timestamp_ms", 1_767_225_600_000, NOW),
        *((type, None, None) for type in TYPES),
    ],
)
def test_an_answer_of_the_declared_type_becomes_a_column(
    type: str, answer: Any, value: Any
) -> None:
    rows, letters, _ = enriched(["patient-1"], answer, type)
    assert rows["added"].to_pylist() == [value]
    assert rows.schema.field("added").type == Added("f", type).arrow
    assert letters.num_rows == 0


@pytest.mark.parametrize(
    ("type", "answer", "came"),
    [
        ("string", 71, "a number"),
        ("string", True, "a boolean"),
        ("string", ["x71"], "an array"),
        ("string", "\ud800", "a string with half a surrogate pair"),
        ("int64", 71.5, "a number"),
        ("int64", True, "a boolean"),
        ("int64", "71", "a string"),
        ("int64", 2**63, "an integer of more than 64 bits"),
        ("double", "71", "a string"),
        ("double", False, "a boolean"),
        ("double", float("inf"), "a number beyond a double's range"),
        ("double", 10**400, "a number beyond a double's range"),
        ("bool", 1, "a number"),
        ("bool", {"x71": 1}, "an object"),
        ("timestamp", 1767225600, "a number"),
        ("timestamp", "2026-01-01", "a string that is no RFC 3339 time"),
        ("timestamp", "2026-01-01T00:00:00", "a string that is no RFC 3339 time"),
        ("timestamp", "2026-02-30T00:00:00Z", "a string that is no RFC 3339 time"),
        ("timestamp_ms", 0.5, "a number"),
        ("timestamp_ms", 10**15, "a number of milliseconds not within the years 1 to 9999"),
    ],
)
def test_an_answer_of_another_type_makes_dead_letters_of_its_rows_alone(
    type: str, answer: Any, came: str
) -> None:
    rows, letters, _ = enriched(["b", "patient-1", None, "patient-1"], answer, type)
    assert rows["n"].to_pylist() == [0, 2]
    (error,) = set(letters["error"].to_pylist())
    assert error == (
        f"enrich: the answer for key: field f of column added: declared {type}, came {came}"
    )
    assert letters["offset"].to_pylist() == [1, 3]
    assert set(letters["stage"].to_pylist()) == {"enrich"}
    assert set(letters["cause"].to_pylist()) == {"wrong_answer"}
    assert set(letters["failed_at"].to_pylist()) == {NOW}


def test_a_path_through_what_is_no_object_is_a_wrong_answer() -> None:
    lookup = Known({"a": {"address": "Bandung"}})
    _, letters, _ = enrich(batch(["a"]), lookup, Enrichment("key", CITY), clock)
    assert "came a string in place of the object with 'city'" in letters["error"][0].as_py()


def test_dead_letters_hold_the_whole_message() -> None:
    rows = batch(["h", "a"])
    _, letters, _ = enrich(rows, Known(OBJECTS), Enrichment("key", CITY, "dead_letter"), clock)
    assert letters.schema == DEAD_LETTERS
    (letter,) = letters.select(MESSAGES.names).to_pylist()
    assert letter == rows[MESSAGE][0].as_py()
    assert letters["error"].to_pylist() == ["enrich: the service does not know the key in key"]


def test_a_failed_service_fails_the_bundle_in_an_error_that_survives_pickling() -> None:
    with pytest.raises(EnrichmentFailed) as raised:
        enrich(batch(["g", "h"]), Known({}, "gh"), Enrichment("key", CITY, name="provider"))
    copy = pickle.loads(pickle.dumps(raised.value))
    assert isinstance(copy, EnrichmentFailed)
    assert (
        str(copy)
        == str(raised.value)
        == ("provider: 2 keys could not be looked up; the first: the service is down")
    )


def test_a_lookup_that_forgets_a_key_is_found_out() -> None:
    class Forgetful:
        def lookup(self, keys: Sequence[str]) -> Answers:
            return Answers({}, frozenset(), {}, {})

    with pytest.raises(ValueError, match="left a key without an answer"):
        enrich(batch(["a"]), Forgetful(), Enrichment("key", CITY))


def test_added_columns_stand_before_the_message_in_their_order() -> None:
    add = {"since": Added("since", "timestamp"), **CITY}
    rows = batch(["a"]).replace_schema_metadata({"job": "orders"})
    schema = enriched_schema(rows.schema, add)
    assert schema.names == ["key", "n", "since", "city", MESSAGE]
    assert schema.metadata == {b"job": b"orders"}
    assert schema.field("since").type == TIMESTAMP
    assert enrich(rows, Known(OBJECTS), Enrichment("key", add)).rows.schema.equals(
        schema, check_metadata=True
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"add": {}}, "provider: add: name at least one column"),
        ({"add": {MESSAGE: Added("x")}}, f"provider: {MESSAGE} is reserved"),
        ({"add": {"key": Added("x")}}, "provider: add: 'key' is the key"),
        ({"on_missing": "drop"}, "provider: on_missing 'drop': give one of null, dead_letter"),
        ({"on_error": "skip"}, "provider: on_error 'skip': give one of fail, dead_letter, null"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_key(options: Any, says: str) -> None:
    with pytest.raises(ValueError) as raised:
        Enrich(Known({}), **{"key": "key", "add": CITY, "name": "provider", **options})
    assert str(raised.value).startswith(says)


@pytest.mark.parametrize(("path", "type"), [("", "string"), ("a..b", "string"), ("a", "text")])
def test_a_wrong_column_is_refused(path: str, type: str) -> None:
    with pytest.raises(ValueError, match="give"):
        Added(path, type)


@pytest.mark.parametrize(
    ("key", "schema", "says"),
    [
        ("key", [("key", pa.string()), ("city", pa.string())], "have a column 'city' already"),
        ("id", [("key", pa.string())], "the rows have no column 'id'"),
        ("key", [("key", pa.binary())], "'key' is binary; choose a plain column"),
        ("key", [("key", pa.list_(pa.string()))], "choose a plain column"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_any_runs(
    key: str, schema: list[tuple[str, pa.DataType]], says: str
) -> None:
    rows = pa.schema([*schema, (MESSAGE, pa.struct(list(MESSAGES)))])
    with pytest.raises(ValueError, match=says):
        Enrichment(key, CITY).schema(rows)


def test_rows_need_their_message() -> None:
    with pytest.raises(ValueError, match=f"last column is to be {MESSAGE}"):
        enriched_schema(pa.schema([("key", pa.string())]), CITY)


def numbers(rows: pa.RecordBatch) -> list[int]:
    return list(rows["n"].to_pylist())


def causes(letters: pa.RecordBatch) -> list[tuple[int, str]]:
    return list(zip(letters["offset"].to_pylist(), letters["cause"].to_pylist(), strict=True))


def test_steps_chain_and_the_dead_letters_of_each_come_along() -> None:
    missing: dict[str, Any] = {"key": "key", "on_missing": "dead_letter", "clock": clock}
    pipeline = beam.Pipeline("DirectRunner")
    first = (
        pipeline
        | beam.Create([batch(["a", "h", "b", "f"]), batch(["h"]), batch(["b"])])
        | Enrich(Known(OBJECTS), add=CITY, name="city", **missing)
    )
    assert isinstance(first, WithDeadLetters)
    both = first | Enrich(Known(OBJECTS), add={"tier": Added("tier", "int64")}, **missing)
    for collection in (*first, *both):
        assert collection.element_type == pa.RecordBatch
    expected = [[(1, "key_not_found")], [(0, "key_not_found")], [(3, "wrong_answer")]]
    assert_that(both.main | beam.Map(numbers), equal_to([[0, 2], [0]]), "main")
    assert_that(both.dead_letters | beam.Map(causes), equal_to(expected), "dead letters")
    result = pipeline.run()
    result.wait_until_finish()
    counters: Counter[str] = Counter()
    for counted in result.metrics().query(MetricsFilter().with_namespace("velocity"))["counters"]:
        counters[counted.key.metric.name] += counted.result
    assert counters["enriched_rows"] == (3 + 1) + (2 + 1)
    assert counters["enrich_keys_missing"] == 2
    assert counters["calls"] == 3 + 2
    assert counters["dead_letters_key_not_found"] == 2


class _Cities(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        keys = self.path.partition("ids=")[2].split(",")
        body = [{"id": key, "address": {"city": f"City of {key}"}} for key in keys]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def cities() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Cities) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/cities?ids={{keys}}"
        server.shutdown()
        thread.join()


@pytest.mark.embedded
def test_a_rest_lookup_travels_with_the_graph(cities: str) -> None:
    lookup = RestLookup(cities, id="id", max_keys=2)
    with beam.Pipeline("DirectRunner") as pipeline:
        rows = pipeline | beam.Create([batch(["a", "b", None, "c", "a"])])
        found = (rows | Enrich(lookup, key="key", add=CITY)).main
        assert_that(
            found | beam.FlatMap(lambda rows: rows["city"].to_pylist()),
            equal_to(["City of a", "City of b", None, "City of c", "City of a"]),
        )
