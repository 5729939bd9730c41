"""Enrichment: the same rows however a stream is cut into batches, and nothing vanishes."""

import json
import pickle
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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

from velocity.io.lookup import MISSING, Answers, Failed, Keep
from velocity.io.lookup_waiting import ServiceUnavailable, Waiting
from velocity.io.records import (
    DEAD_LETTERS,
    MESSAGE,
    MESSAGES,
    TIMESTAMP,
    WithDeadLetters,
)
from velocity.io.rest import RestLookup
from velocity.io.rest_calls import Template
from velocity.transforms.answers import Added
from velocity.transforms.enrich import (
    Enrich,
    Enriched,
    Enrichment,
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

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        self.asked += keys
        values = [
            Failed("the service is down")
            if key in self.fails
            else keep(self.objects[key])
            if key in self.objects
            else MISSING
            for key in keys
        ]
        return lambda: Answers(values, {"calls": 1}, {"rest_call_ms": [60, 7_000]})


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
    return enrich(batch(keys), [Enrichment(lookup, "key", {"added": Added("f", type)})], clock)


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
    enrichments = [Enrichment(Known(OBJECTS, FAILS), "key", add, on_missing, on_error)]
    whole = enrich(batch(keys), enrichments, clock)
    edges = sorted({0, len(keys)} | {cut for cut in cuts if cut < len(keys)})
    parts = [
        enrich(batch(keys).slice(start, end - start), enrichments, clock)
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
    enrich(batch(["b", None, "a", "b", "a", None]), [Enrichment(lookup, "key", CITY)])
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
    result = enrich(batch(keys, kind), [Enrichment(lookup, "key", CITY)])
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
    _, letters, _ = enrich(batch(["a"]), [Enrichment(lookup, "key", CITY)], clock)
    assert "came a string in place of the object with 'city'" in letters["error"][0].as_py()


def test_dead_letters_hold_the_whole_message() -> None:
    rows = batch(["h", "a"])
    _, letters, _ = enrich(rows, [Enrichment(Known(OBJECTS), "key", CITY, "dead_letter")], clock)
    assert letters.schema == DEAD_LETTERS
    (letter,) = letters.select(MESSAGES.names).to_pylist()
    assert letter == rows[MESSAGE][0].as_py()
    assert letters["error"].to_pylist() == ["enrich: the service does not know the key in key"]


class Clock:
    """Time that passes by sleeping alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> bool:
        self.now += seconds
        return True


class Outage(Known):
    """Knows all, once the clock has come to ``until``; refuses the keys ``refuses`` all the time."""

    def __init__(self, time: Clock, until: float, refuses: Sequence[str] = ()) -> None:
        super().__init__(OBJECTS)
        self.time, self.until, self.refuses = time, until, refuses

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        answers = super().begin(keys, keep)()
        values = [
            Failed("no such number", refused=True) if key in self.refuses else value
            for key, value in zip(keys, answers.values, strict=True)
        ]
        if self.time() < self.until:
            values = [value if type(value) is Failed else Failed("down") for value in values]
        return lambda: Answers(values, answers.counts)


def waiting(lookup: Outage, limit: float) -> Waiting:
    time = lookup.time
    return Waiting(lookup, limit, "city", time, time.sleep, lambda low, high: high)


def test_a_lookup_that_waits_ends_with_what_the_service_knows_and_asks_again_for_the_rest() -> None:
    time = Clock()
    lookup = Outage(time, 600.0, refuses="b")
    answers = waiting(lookup, 1000.0).begin(["a", "b", "z"], lambda answer: answer)()
    assert answers.values == [OBJECTS["a"], Failed("no such number", refused=True), MISSING]
    assert 600 <= time() <= 605
    assert answers.counts["calls"] == 1 + lookup.asked.count("a") - 1
    assert lookup.asked.count("b") == 1, "a key that is refused was waited for"


@given(until=st.floats(0, 1000), limit=st.floats(0.01, 1000))
def test_a_bundle_waits_as_long_as_it_may_and_not_longer(until: float, limit: float) -> None:
    time = Clock()
    lookup = waiting(Outage(time, until), limit)
    try:
        answers = lookup.begin(["a"], lambda answer: answer)()
    except ServiceUnavailable as error:
        assert until > limit
        assert time() == pytest.approx(limit)
        assert (error.name, error.keys, error.error) == ("city", 1, "down")
    else:
        assert answers.values == [OBJECTS["a"]]
        assert until <= time() <= limit


def test_a_wait_ends_with_the_process() -> None:
    time = Clock()
    lookup = Waiting(Outage(time, 600.0), 1000.0, "city", time, lambda seconds: False)
    with pytest.raises(ServiceUnavailable):
        lookup.begin(["a"], lambda answer: answer)()
    assert time() == 0


def test_what_says_that_a_service_failed_for_too_long_survives_pickling() -> None:
    error = ServiceUnavailable("provider", 2, 300.0, "the service is down")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, ServiceUnavailable)
    assert str(copy) == str(error)
    assert str(copy).startswith(
        "provider: 2 keys could not be looked up in 300 s; the first: the service is down."
    )


def test_a_key_that_is_refused_makes_dead_letters_although_the_others_would_wait() -> None:
    lookup = Outage(Clock(), 0.0, refuses="b")
    rows, letters, _ = enrich(
        batch(["a", "b", "a"]), [Enrichment(lookup, "key", CITY, on_error="wait")], clock
    )
    assert rows["n"].to_pylist() == [0, 2]
    assert letters["cause"].to_pylist() == ["service_failed"]
    assert letters["error"].to_pylist() == ["enrich: no such number"]


def test_rows_of_unknown_keys_get_the_values_that_are_given_for_it() -> None:
    add = {**CITY, "tier": Added("tier", "int64")}
    unknown = {"city": "nowhere"}
    rows, letters, _ = enrich(
        batch(["a", "z", None, "d"]), [Enrichment(Known(OBJECTS), "key", add, unknown)], clock
    )
    assert rows["city"].to_pylist() == ["Bandung", "nowhere", None, None]
    assert rows["tier"].to_pylist() == [1, None, None, 4]
    assert letters.num_rows == 0


def test_several_enrichments_are_looked_up_at_once_and_a_row_is_one_dead_letter() -> None:
    began: list[str] = []

    class Told(Known):
        def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
            began.append("begun")
            answers = super().begin(keys, keep)

            def ended() -> Answers:
                began.append("ended")
                return answers()

            return ended

    first = Enrichment(Told(OBJECTS), "key", CITY, "dead_letter", name="first")
    tier = {"tier": Added("tier", "int64")}
    second = Enrichment(Told(OBJECTS), "key", tier, "dead_letter", name="second")
    rows, letters, _ = enrich(batch(["a", "z", "f"]), [first, second], clock)
    assert began == ["begun", "begun", "ended", "ended"]
    assert rows.schema.names == ["key", "n", "city", "tier", MESSAGE]
    assert rows["n"].to_pylist() == [0]
    assert letters["offset"].to_pylist() == [1, 2]
    assert letters["cause"].to_pylist() == ["key_not_found", "wrong_answer"]
    assert letters["error"][0].as_py().startswith("first: ")


def test_a_key_of_several_columns_is_asked_for_by_its_parts_and_a_null_in_it_is_none() -> None:
    lookup = Known({"a\x1f0": {"address": {"city": "Bandung"}}})
    result = enrich(batch(["a", "a", None]), [Enrichment(lookup, ("key", "n"), CITY)])
    assert lookup.asked == ["a\x1f0", "a\x1f1"]
    assert result.rows["city"].to_pylist() == ["Bandung", None, None]


def test_a_lookup_that_forgets_a_key_is_found_out() -> None:
    class Forgetful:
        def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
            return lambda: Answers([None])

    with pytest.raises(ValueError, match="left a key without an answer"):
        enrich(batch(["a"]), [Enrichment(Forgetful(), "key", CITY)])


def test_added_columns_stand_before_the_message_in_their_order() -> None:
    add = {"since": Added("since", "timestamp"), **CITY}
    rows = batch(["a"]).replace_schema_metadata({"job": "orders"})
    schema = enriched_schema(rows.schema, add)
    assert schema.names == ["key", "n", "since", "city", MESSAGE]
    assert schema.metadata == {b"job": b"orders"}
    assert schema.field("since").type == TIMESTAMP
    assert enrich(rows, [Enrichment(Known(OBJECTS), "key", add)]).rows.schema.equals(
        schema, check_metadata=True
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"add": {}}, "provider: add: name at least one column"),
        ({"add": {MESSAGE: Added("x")}}, f"provider: {MESSAGE} is reserved"),
        ({"add": {"key": Added("x")}}, "provider: add: 'key' is the key"),
        ({"on_missing": "drop"}, "provider: on_missing 'drop': give one of null, dead_letter"),
        ({"on_missing": {"x": 1}}, "provider: on_missing: 'x' is none of the columns added"),
        ({"on_missing": {"city": 1}}, "provider: on_missing: city is declared string, and given a"),
        ({"on_error": "skip"}, "provider: on_error 'skip': give one of wait, dead_letter, null"),
        ({"wait_at_most": 0}, "provider: wait_at_most: give seconds above 0"),
        ({"key": ()}, "provider: key: name at least one column"),
    ],
)
def test_a_wrong_configuration_is_refused_with_its_key(options: Any, says: str) -> None:
    with pytest.raises(ValueError) as raised:
        Enrichment(Known({}), **{"key": "key", "add": CITY, "name": "provider", **options})
    assert str(raised.value).startswith(says)


@pytest.mark.parametrize(("path", "type"), [("", "string"), ("a..b", "string"), ("a", "text")])
def test_a_wrong_column_is_refused(path: str, type: str) -> None:
    with pytest.raises(ValueError, match=r"give|is none of"):
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
        Enrichment(Known({}), key, CITY).schema(rows)


def test_enrichments_of_one_step_take_no_key_from_each_other() -> None:
    first = Enrichment(Known({}), "key", CITY)
    with pytest.raises(ValueError, match="'city' is added by the same step; chain two"):
        Enrich(first, Enrichment(Known({}), "city", {"area": Added("area")}))


def test_rows_need_their_message() -> None:
    with pytest.raises(ValueError, match=f"last column is to be {MESSAGE}"):
        enriched_schema(pa.schema([("key", pa.string())]), CITY)


def numbers(rows: pa.RecordBatch) -> list[int]:
    return list(rows["n"].to_pylist())


def causes(letters: pa.RecordBatch) -> list[tuple[int, str]]:
    return list(zip(letters["offset"].to_pylist(), letters["cause"].to_pylist(), strict=True))


def test_steps_chain_and_the_dead_letters_of_each_come_along() -> None:
    def step(add: Mapping[str, Added], name: str = "enrich") -> Enrich:
        enrichment = Enrichment(Known(OBJECTS), "key", add, "dead_letter", name=name)
        return Enrich(enrichment, clock=clock)

    pipeline = beam.Pipeline("DirectRunner")
    first = (
        pipeline
        | beam.Create([batch(["a", "h", "b", "f"]), batch(["h"]), batch(["b"])])
        | step(CITY, "city")
    )
    assert isinstance(first, WithDeadLetters)
    both = first | step({"tier": Added("tier", "int64")})
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
    within = [counters[f"rest_calls_within_{bound}ms"] for bound in (50, 100, 5_000)]
    assert within == [0, 5, 5]
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
    lookup = RestLookup(Template(cities, id=("id",)), max_keys=2)
    with beam.Pipeline("DirectRunner") as pipeline:
        rows = pipeline | beam.Create([batch(["a", "b", None, "c", "a"])])
        found = (rows | Enrich(Enrichment(lookup, "key", CITY))).main
        assert_that(
            found | beam.FlatMap(lambda rows: rows["city"].to_pylist()),
            equal_to(["City of a", "City of b", None, "City of c", "City of a"]),
        )
