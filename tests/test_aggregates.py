"""Aggregates: a result depends on the values alone, on neither their order nor the cuts."""

import copy
import itertools
import math
import random
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pyarrow as pa
import pytest
from apache_beam.coders import FastPrimitivesCoder
from hypothesis import example, given, settings
from hypothesis import strategies as st

from velocity.io.records import TIMESTAMP
from velocity.transforms.aggregates import Call, Value
from velocity.transforms.exact_sums import add, limbs, to_float
from velocity.transforms.moments import Count, Mean, Sum, Variance
from velocity.transforms.ordered import Edge, Extreme
from velocity.transforms.reduction import Aggregate
from velocity.transforms.sketches import Distinct, Percentile
from velocity.transforms.tallies import Histogram, Top

CODER = FastPrimitivesCoder()
INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(1e-300, 1e-290),
    st.floats(1e290, 1e300),
    st.floats(-100, 100).map(lambda x: round(x, 2)),
    st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1.7976931348623157e308, 2.0**53, 0.1, -0.1]),
)


MONEY = pa.decimal128(38, 2)
MONIES = st.one_of(
    st.decimals(-(10**36) + 1, 10**36 - 1, places=2), st.decimals(-9, 9, places=2)
).map(lambda x: x if x else abs(x))


def state(aggregate: Aggregate, values: Sequence[Any], type_: pa.DataType) -> Any:
    """That of one batch, through Arrow's group-by as in the graph, with a second group beside it."""
    if not values:
        return None
    array = pa.array([*values, *values], type_)
    table = pa.table({"group": [0] * len(values) + [1] * len(values)})
    reduction = aggregate.reduce(array, pa.array(range(len(array)), pa.int64()))
    for i, (column, _) in enumerate(reduction.columns):
        table = table.append_column(str(i), column)
    wanted = [(str(i), function) for i, (_, function) in enumerate(reduction.columns)]
    grouped = table.group_by("group", use_threads=False).aggregate(wanted)
    arrays = [grouped[f"{name}_{function}"].combine_chunks() for name, function in wanted]
    one, two = reduction.states(*arrays)
    assert aggregate.result(one) == aggregate.result(two)
    return one


def merged(aggregate: Aggregate, states: Sequence[Any]) -> Any:
    known = [CODER.decode(CODER.encode(s)) for s in states if s is not None]
    return aggregate.merge(known) if len(known) > 1 else known[0] if known else None


def cut(values: Sequence[Any], edges: Sequence[int]) -> list[Sequence[Any]]:
    places = sorted({0, len(values), *(edge % (len(values) + 1) for edge in edges)})
    return [values[i:j] for i, j in itertools.pairwise(places)]


def shown(result: Any) -> str:
    """As a document shows it; 0.0 and -0.0 are not the same there."""
    return repr(result)


CASES: list[tuple[str, Aggregate, pa.DataType, Any]] = [
    ("count", Count(), pa.float64(), FLOATS),
    ("sum of floats", Sum(), pa.float64(), FLOATS),
    ("sum of whole numbers", Sum(integer=True), pa.int64(), INTS),
    ("mean of floats", Mean(), pa.float64(), FLOATS),
    ("mean of whole numbers", Mean(), pa.int64(), INTS),
    ("min", Extreme("min"), pa.float64(), FLOATS),
    ("max", Extreme("max"), pa.float64(), FLOATS),
    ("max of whole numbers", Extreme("max"), pa.int64(), INTS),
    ("min of texts", Extreme("min"), pa.string(), st.text(max_size=3)),
    ("max of times", Extreme("max", time=True), TIMESTAMP, st.integers(-(10**12), 10**12)),
    ("distinct floats", Distinct(exact=5), pa.float64(), FLOATS),
    ("distinct texts", Distinct(exact=5), pa.string(), st.text("abcdefghij", max_size=2)),
    ("distinct whole numbers", Distinct(exact=5), pa.int64(), INTS),
    ("distinct booleans", Distinct(), pa.bool_(), st.booleans()),
    ("distinct times", Distinct(exact=5), TIMESTAMP, st.integers(0, 20)),
    ("percentile", Percentile(50, exact=5), pa.float64(), FLOATS),
    ("variance of floats", Variance(), pa.float64(), FLOATS),
    ("variance of whole numbers", Variance(), pa.int64(), INTS),
    ("stddev", Variance(root=True), pa.float64(), st.floats(-1e6, 1e6)),
    ("top texts", Top(2, exact=5), pa.string(), st.text("abcdefghij", max_size=1)),
    ("top times", Top(2, time=True), TIMESTAMP, st.integers(0, 20)),
    ("top booleans", Top(1), pa.bool_(), st.booleans()),
    ("histogram of floats", Histogram((-1, 0, 0.5)), pa.float64(), FLOATS),
    ("histogram of whole numbers", Histogram((0, 2**62)), pa.int64(), INTS),
    ("percentile of whole numbers", Percentile(99.9, exact=5), pa.int64(), INTS),
    ("sum of decimals", Sum(scale=2), MONEY, MONIES),
    ("mean of decimals", Mean(2), MONEY, MONIES),
    ("stddev of decimals", Variance(True, 2), MONEY, MONIES),
    ("min of decimals", Extreme("min", scale=2), MONEY, MONIES),
    ("distinct decimals", Distinct(exact=5), MONEY, MONIES),
    ("top decimals", Top(2, scale=2), MONEY, MONIES),
    ("histogram of decimals", Histogram((0, 0.05)), MONEY, MONIES),
    ("percentile of decimals", Percentile(50, exact=5), MONEY, MONIES),
]


each_case = pytest.mark.parametrize(
    ("aggregate", "type_", "values"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)


@each_case
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_neither_order_nor_cuts_show_in_a_result(
    aggregate: Aggregate, type_: pa.DataType, values: Any, data: Any
) -> None:
    """So a merge is associative and commutative: any tree over any order gives one result."""
    found = data.draw(st.lists(st.none() | values, max_size=30))
    expected = shown(aggregate.result(state(aggregate, found, type_)))
    shuffled = data.draw(st.permutations(found))
    edges = data.draw(st.lists(st.integers(0, 30), max_size=4))
    states = [state(aggregate, part, type_) for part in cut(shuffled, edges) if part]
    while len(states) > 2:  # pairs first, in an order of hypothesis's choosing
        i = data.draw(st.integers(0, len(states) - 2))
        states[i : i + 2] = [merged(aggregate, states[i : i + 2])]
        states = data.draw(st.permutations(states))
    assert shown(aggregate.result(merged(aggregate, states))) == expected


@each_case
@settings(deadline=None, max_examples=20)
@given(data=st.data())
def test_a_merge_changes_nothing_that_it_merges(
    aggregate: Aggregate, type_: pa.DataType, values: Any, data: Any
) -> None:
    """A worker caches states: the next pane merges the very objects that this one did."""
    found = data.draw(st.lists(st.lists(values, min_size=1, max_size=12), min_size=2, max_size=4))
    states = [state(aggregate, part, type_) for part in found]
    before = copy.deepcopy(states)
    aggregate.result(aggregate.merge(states))
    assert states == before


@pytest.mark.parametrize("aggregate", [c[1] for c in CASES], ids=[c[0] for c in CASES])
def test_no_value_is_none_or_nought(aggregate: Aggregate) -> None:
    match aggregate:
        case Count() | Distinct():
            nothing: Any = 0
        case Top():
            nothing = []
        case Histogram(bounds):
            nothing = {"bounds": list(bounds), "counts": [0] * (len(bounds) + 1)}
        case _:
            nothing = None
    assert aggregate.result(None) == nothing


@pytest.mark.parametrize(("aggregate", "type_"), [c[1:3] for c in CASES], ids=[c[0] for c in CASES])
def test_nulls_are_no_values(aggregate: Aggregate, type_: pa.DataType) -> None:
    assert aggregate.result(state(aggregate, [None, None], type_)) == aggregate.result(None)


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=60))
@example([1e308, 1e308, -1e308])
@example([1.0, 1e-300, 1e300, -1e300])
@example([5e-324] * 50)
@example([0.1] * 10)
def test_a_sum_of_floats_is_the_exact_sum_rounded_once(values: list[float]) -> None:
    exact = sum(map(Fraction, values), Fraction())
    assert Sum().result(state(Sum(), values, pa.float64())) == to_float(exact, 0)
    assert Mean().result(state(Mean(), values, pa.float64())) == to_float(exact / len(values), 0)


@settings(deadline=None)
@given(st.lists(INTS, min_size=1, max_size=60))
@example([2**63 - 1] * 40)
@example([-(2**63)] * 40)
def test_a_sum_of_whole_numbers_never_overflows(values: list[int]) -> None:
    total = Sum(integer=True)
    assert total.result(state(total, values, pa.int64())) == sum(values)
    mean = float(Fraction(sum(values), len(values)))
    assert Mean().result(state(Mean(), values, pa.int64())) == mean


@settings(deadline=None)
@given(st.lists(MONIES, min_size=1, max_size=60))
@example([Decimal("0.10")] * 10)
@example([Decimal("9" * 36 + ".99")] * 60)
@example([Decimal("-" + "9" * 36 + ".99"), Decimal("0.01")])
def test_a_sum_of_decimals_is_exact_of_any_size(values: list[Decimal]) -> None:
    total = Sum(scale=2)
    found = total.result(state(total, values, MONEY))
    assert isinstance(found, str)
    assert Fraction(found) == sum(map(Fraction, values))
    assert len(found.partition(".")[2]) == 2


@settings(deadline=None, max_examples=60)
@given(st.lists(FLOATS, min_size=1, max_size=40) | st.lists(INTS, min_size=1, max_size=40))
@example([1e9 + 0.1, 1e9 + 0.2, 1e9 + 0.3])
@example([2**63 - 1, -(2**63)])
@example([0.1] * 7)
def test_a_variance_is_the_exact_one_rounded_once(values: list[float]) -> None:
    """By the definition, in fractions; the usual formula for doubles loses all digits here."""
    type_ = pa.int64() if all(isinstance(value, int) for value in values) else pa.float64()
    found = Variance().result(state(Variance(), values, type_))
    if len(values) == 1:
        assert found is None
        return
    mean = sum(map(Fraction, values), Fraction()) / len(values)
    squares_of = sum((Fraction(value) - mean) ** 2 for value in values)
    assert found == to_float(Fraction(squares_of) / (len(values) - 1), 0)
    root = Variance(root=True)
    deviation = root.result(state(root, values, type_))
    assert deviation == (None if found is None else math.sqrt(found))


TIMED = st.lists(st.tuples(st.integers(0, 3), st.none() | st.text("ab", max_size=2)), max_size=20)


@given(TIMED, st.data())
def test_first_and_last_go_by_event_time_and_then_by_value(
    events: list[tuple[int, str | None]], data: st.DataObject
) -> None:
    """In any order, and however they were cut."""
    given = [(time, value) for time, value in events if value is not None]
    edges = data.draw(st.lists(st.integers(0, 20), max_size=3))
    for which, choose in (("first", min), ("last", max)):
        edge = Edge(which)
        shuffled = data.draw(st.permutations(events))
        states = [timed_state(edge, part) for part in cut(shuffled, edges) if part]
        expected = choose(given)[1] if given else None
        assert edge.result(merged(edge, states)) == expected


def timed_state(aggregate: Aggregate, events: Sequence[tuple[int, str | None]]) -> Any:
    times = pa.array([time for time, _ in events], pa.int64())
    reduction = aggregate.reduce(pa.array([value for _, value in events], pa.string()), times)
    [(column, function)] = reduction.columns
    table = pa.table({"group": [0] * len(events), "x": column})
    grouped = table.group_by("group", use_threads=False).aggregate([("x", function)])
    return reduction.states(grouped[f"x_{function}"].combine_chunks())[0]


def test_a_last_time_is_shown_as_a_time() -> None:
    assert Edge("last", time=True).result((5, 7)) == "1970-01-01T00:00:00.007Z"


@pytest.mark.parametrize("parts", [1, 3, 50])
def test_the_most_frequent_are_exact_up_to_so_many_different_values_and_null_beyond(
    parts: int,
) -> None:
    """Whether there are too many does not depend on the cuts either."""
    top = Top(2, exact=100)
    for n, expected in (
        (100, [{"value": "7", "count": 3}, {"value": "0", "count": 1}]),
        (101, None),
    ):
        values = [str(i) for i in range(n)] + ["7", "7"]
        states = [state(top, values[i::parts], pa.string()) for i in range(parts)]
        assert top.result(merged(top, states)) == expected


@pytest.mark.parametrize(
    ("results", "ratio"),
    [([1, 3], 1 / 3), ([0, 5], 0.0), ([5, 0], None), ([None, 5], None), ([5, None], None),
     ([0.1, 0.3], float(Fraction(0.1) / Fraction(0.3))), ([2**80, 2**79], 2.0)],
)  # fmt: skip
def test_a_ratio_is_rounded_once_and_null_over_nothing(results: list[Any], ratio: Any) -> None:
    assert Value.parse("ratio(sum(a), sum(b))").result(results) == ratio


def test_a_sum_beyond_a_float_is_null_and_comes_back_when_it_falls() -> None:
    high = state(Sum(), [1.7e308, 1.7e308], pa.float64())
    assert Sum().result(high) is None
    assert Sum().result(Sum().merge([high, state(Sum(), [-1.7e308], pa.float64())])) == 1.7e308


@given(st.lists(st.one_of(FLOATS, st.none()), max_size=40))
def test_limbs_add_up_to_the_values_and_fit_an_int64(values: list[float | None]) -> None:
    shifts, columns = limbs(pa.array(values, pa.float64()))
    for i, value in enumerate(values):
        parts = [column[i].as_py() for column in columns]
        if value is None:
            assert set(parts) <= {None}
        else:
            mantissa, exponent = add(zip(parts, shifts, strict=True))
            assert mantissa * Fraction(2) ** exponent == Fraction(value)
            assert all(abs(part) * len(values) < 2**63 for part in parts)


@given(st.lists(st.tuples(INTS, st.integers(-1100, 1100)), max_size=8))
def test_equal_sums_are_equal_pairs(terms: list[tuple[int, int]]) -> None:
    mantissa, exponent = add(terms)
    assert mantissa * Fraction(2) ** exponent == sum(m * Fraction(2) ** e for m, e in terms)
    assert mantissa % 2 or (mantissa, exponent) == (0, 0)


@pytest.mark.parametrize("n", [1, 999, 1000])
def test_distinct_is_exact_to_a_thousand(n: int) -> None:
    values = [f"user {i}" for i in range(n)] * 2
    distinct = Distinct()
    states = [state(distinct, part, pa.string()) for part in cut(values, [300, 900])]
    assert distinct.result(merged(distinct, states)) == n


@pytest.mark.parametrize("n", [1001, 1500, 5000, 40_000])
def test_distinct_is_within_four_standard_errors_beyond(n: int) -> None:
    distinct = Distinct()
    for make, type_ in ((str, pa.string()), (int, pa.int64()), (float, pa.float64())):
        found = distinct.result(state(distinct, [make(i) for i in range(n)], type_))
        assert abs(found / n - 1) < 4 * 1.04 / math.sqrt(2**12)


def test_distinct_is_the_same_in_any_order_and_any_cut() -> None:
    values = [f"user {i}" for i in range(5000)]
    distinct = Distinct()
    found = set()
    for seed, parts in enumerate([1, 2, 7, 60, 700]):
        random.Random(seed).shuffle(values)
        states = [state(distinct, values[i::parts], pa.string()) for i in range(parts)]
        found.add(distinct.result(merged(distinct, states)))
    assert len(found) == 1


@given(st.lists(FLOATS, min_size=1, max_size=80), st.floats(0.001, 100))
def test_a_percentile_of_few_values_is_the_one_at_the_nearest_rank(
    values: list[float], rank: float
) -> None:
    """Nearest rank: the least value that at least ``rank`` percent of the values do not exceed."""
    percentile = Percentile(rank)
    need = Fraction(str(rank)) * len(values) / 100
    expected = next(v for v in sorted(values) if sum(w <= v for w in values) >= need)
    assert percentile.result(state(percentile, values, pa.float64())) == expected


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.one_of(FLOATS, st.integers(-50, 50).map(float)), min_size=4, max_size=60),
    st.sampled_from([0.1, 25, 50, 95, 99.9, 100]),
)
@example([1.7976931348623157e308] * 9, 50)
@example([-1.7976931348623157e308] * 9, 50)
@example([0.0, -0.0, 0.0, -0.0], 50)
def test_a_percentile_of_many_values_is_off_by_at_most_its_error(
    values: list[float], rank: float
) -> None:
    percentile = Percentile(rank, exact=3)
    expected = sorted(values)[math.ceil(Fraction(str(rank)) * len(values) / 100) - 1]
    found = percentile.result(state(percentile, values, pa.float64()))
    assert found is not None
    assert math.isfinite(found)
    if abs(expected) < 1e-300:
        assert found == 0
    else:
        assert abs(found / expected - 1) <= percentile.error * (1 + 1e-6)


def test_a_percentile_is_exact_to_256_values_however_they_were_cut() -> None:
    values = [float(i) for i in range(256)]
    percentile = Percentile(50)
    for parts in (1, 2, 16):
        states = [state(percentile, values[i::parts], pa.float64()) for i in range(parts)]
        assert percentile.result(merged(percentile, states)) == 127.0
    more = state(percentile, [*values, 256.0], pa.float64())
    assert isinstance(more, dict)


@pytest.mark.parametrize(
    ("aggregate", "values", "type_"),
    [
        (Sum(), [1e300, 1e-300], pa.float64()),
        (Mean(), [1e300, 1e-300], pa.float64()),
        (Sum(integer=True), [2**63 - 1] * 5, pa.int64()),
        (Distinct(), ["é", "", "a"], pa.string()),
        (Distinct(exact=1), ["é", "a"], pa.string()),
        (Percentile(50, exact=1), [1.0, -1.0, 0.0], pa.float64()),
        (Extreme("max"), ["é"], pa.string()),
        (Edge("last"), ["é"], pa.string()),
        (Variance(), [1e300, 1e-300], pa.float64()),
        (Top(1), ["é", "a"], pa.string()),
        (Top(1, exact=1), ["é", "a"], pa.string()),
        (Histogram((1,)), [0, 1, 2], pa.int64()),
    ],
    ids=str,
)
def test_a_state_survives_the_coder_of_a_users_state(
    aggregate: Aggregate, values: list[Any], type_: pa.DataType
) -> None:
    before = state(aggregate, values, type_)
    after = CODER.decode(CODER.encode(before))
    assert (type(after), after) == (type(before), before)


@pytest.mark.parametrize("values", [[0.0, -0.0], [-0.0, 0.0]], ids=str)
@pytest.mark.parametrize("aggregate", [Extreme("min"), Extreme("max"), Percentile(50)], ids=str)
def test_there_is_one_zero(aggregate: Aggregate, values: list[float]) -> None:
    """A document would say 0.0 or -0.0 as the order has it."""
    assert shown(aggregate.result(state(aggregate, values, pa.float64()))) == "0.0"
    states = [state(aggregate, [value], pa.float64()) for value in values]
    assert shown(aggregate.result(merged(aggregate, states))) == "0.0"


def test_extremes_of_times_are_shown_as_times() -> None:
    latest = Extreme("max", time=True)
    assert latest.result(state(latest, [5, None, -1], TIMESTAMP)) == "1970-01-01T00:00:00.005Z"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sum", "sum\\(amount\\) is wanted"),
        ("sum(a", "is wanted"),
        ("sum()", "needs an expression"),
        ("smu(a)", "did you mean sum"),
        ("percentile(a)", "RANK"),
        ("percentile(95)", "RANK|needs an expression"),
        ("percentile(, 95)", "RANK"),
        ("percentile(a, b)", "RANK"),
        ("top(a)", "HOW_MANY"),
        ("top(a, 1.5)", "HOW_MANY"),
        ("histogram(a, 1)", "BOUND"),
        ("histogram(a, [1, 'x'])", "BOUND"),
        ("ratio(sum(a), sum(b))", "part of another"),
        ("sum(a)+abs(b)", r"nothing around it, not: sum\(a\)\+abs\(b\); compute within it"),
        ("sum(a) / count()", "nothing around it"),
        ("count() + 1", "nothing around it"),
        ("round(sum(a), 2)", "nothing around it"),
        ("percentile(a), (b), 5)", "nothing around it"),
    ],
)
def test_a_call_that_can_not_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Call.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ratio(sum(a))", r"ratio\(AGGREGATE, AGGREGATE\)"),
        ("ratio(sum(a), b)", "ratio: an aggregate"),
        ("ratio(sum(a), top(b, 3))", "is no number"),
        ("ratio(sum(a) + abs(b), count())", r"ratio: one aggregate .*not: sum\(a\) \+ abs\(b\);"),
        ("ratio(ratio(sum(a), sum(b)), count())", "part of another"),
    ],
)
def test_a_ratio_that_can_not_be_read_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Value.parse(text)


@pytest.mark.parametrize(
    ("text", "type_"),
    [
        ("sum(a)", pa.string()),
        ("sum(a)", pa.bool_()),
        ("mean(a)", TIMESTAMP),
        ("percentile(a, 50)", pa.string()),
        ("max(a)", pa.bool_()),
        ("percentile(a, 0)", pa.int64()),
        ("percentile(a, 100.1)", pa.int64()),
        ("variance(a)", pa.string()),
        ("top(a, 3)", pa.float64()),
        ("top(a, 0)", pa.string()),
        ("top(a, 1001)", pa.string()),
        ("histogram(a, [1])", pa.string()),
        ("histogram(a, [2, 1])", pa.int64()),
    ],
)
def test_an_aggregate_that_can_not_be_computed_is_refused(text: str, type_: pa.DataType) -> None:
    with pytest.raises(
        ValueError, match=r"needs numbers|does not take|percentile is above 0|top takes|bounds are"
    ):
        Call.parse(text).aggregate(type_)


def test_a_call_is_read_to_its_last_comma_and_bracket() -> None:
    call = Call.parse(" percentile( greatest(a, (b)), 99.5 ) ")
    assert call == ("percentile", "greatest(a, (b))", 99.5)
