"""The plain recomputation: a job's documents from all its events at once, by loops and dicts.

It shares neither batches, windows nor merging with the graph, only DuckDB's reading of the SQL
expressions, and is what every run, on any runner and after any crash, must equal.
"""

import hmac
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Context, Decimal, InvalidOperation
from fractions import Fraction
from itertools import islice, pairwise
from typing import Any, Final, NamedTuple
from zoneinfo import ZoneInfo

import duckdb
import jmespath
import pyarrow as pa

from velocity.io.records import TIMESTAMP, rfc3339
from velocity.pipelines.graph import window_of
from velocity.pipelines.job import DeduplicateSpec, EnrichmentSpec, Job, MetricSpec, TransactionSpec
from velocity.pipelines.recompute_transactions import facts
from velocity.transforms.aggregates import Call, Value
from velocity.transforms.fields import arrow_type
from velocity.transforms.ids import IdTemplate
from velocity.transforms.metrics import document_id
from velocity.transforms.sketches import Distinct, Percentile
from velocity.transforms.tallies import Top

_LATEST: Final = "_latest"
"""The column of the greatest event time seen before, in the same partition."""
_POSITION: Final = "_position"

Find = Callable[[str], Mapping[str, Any] | None]
"""What a service knows of a key; None if nothing."""

_MANY_DIGITS: Final = Context(prec=1_000)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_END_OF_TIME: Final = (datetime(9999, 12, 31, 23, 59, 59, 999_000, UTC) - _EPOCH) // _MILLISECOND


class Message(NamedTuple):
    """What the recomputation needs of a message."""

    value: bytes
    timestamp_ms: int
    """The broker's."""
    partition: Any = None
    """Which it came in, with its topic: after those given before it. None: it is late nowhere."""


@dataclass(frozen=True, slots=True)
class Expected:
    """A value of a document, and how far a sketch's result may be from it."""

    value: Any
    tolerance: float = 0.0

    def admits(self, found: Any) -> bool:
        if not self.tolerance or self.value is None or found is None:
            return type(found) is type(self.value) and bool(found == self.value)
        return bool(abs(found - self.value) <= self.tolerance)


@dataclass(frozen=True, slots=True)
class ExpectedDocument:
    """A document as it must be when all events have been counted."""

    metric: str
    window_start: str
    window_end: str
    dimensions: Mapping[str, Any]
    values: Mapping[str, Expected]
    events: int


def _parsed(value: bytes) -> Any:
    """Of JSON; numbers with a point or an exponent as they are written."""
    return json.loads(value.decode(), parse_float=_number)


def _number(text: str) -> Decimal | float:
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of more than 18 digits
        return float(text)


class Recomputed(NamedTuple):
    """What must come of a job's messages."""

    documents: dict[str, ExpectedDocument]
    """By id."""
    late: set[tuple[int, str]]
    """The positions of the messages that came too late, each with the metric it was too late for."""


def recompute(
    job: Job,
    messages: Iterable[Message],
    services: Mapping[str, Find],
    parse: Callable[[bytes], Any] = _parsed,
    *,
    secret: str = "",
) -> dict[str, ExpectedDocument]:
    """The documents of a job by id. ``services`` answer for the job's enrichments, by name.

    ``parse`` makes a JSON value of a message's; it raises ``ValueError`` for one that is bad.
    ``secret`` is what ``hash_with`` of the job's sensitive fields stands for.
    """
    return recompute_all(job, messages, services, parse, secret=secret).documents


def recompute_all(
    job: Job,
    messages: Iterable[Message],
    services: Mapping[str, Find],
    parse: Callable[[bytes], Any] = _parsed,
    *,
    secret: str = "",
) -> Recomputed:
    """As ``recompute``, with what is late. No partition was ever idle."""
    rows, latest = [], dict[Any, int]()
    for position, message in enumerate(messages):
        row = _decode(job, message, parse)
        if row is not None:
            before = None if message.partition is None else latest.get(message.partition)
            time = row[job.source.event_time]
            latest[message.partition] = time if before is None else max(before, time)
            rows.append(row | {_LATEST: before, _POSITION: position})
    if job.source.deduplicate:
        rows = list(_first_of_each(job, job.source.deduplicate, rows))
    types = {name: spec.type for name, spec in job.fields.items()}
    table = _table(rows, types | {_LATEST: "int64", _POSITION: "int64"})
    if job.filter:
        table = _sql(table, f"SELECT * FROM rows WHERE ({job.filter})")
    for spec in job.enrich:
        table = _enriched(table, spec, services[spec.name])
    for name in job.sensitive.fields if job.sensitive else ():
        hashed = [
            None if value is None else hmac.digest(secret.encode(), _text(value).encode(), "sha256")
            for value in table[name].to_pylist()
        ]
        at = table.schema.get_field_index(name)
        table = table.remove_column(at)
        if secret:
            texts = [None if digest is None else digest.hex()[:32] for digest in hashed]
            table = table.add_column(at, name, pa.array(texts, pa.string()))
    if job.derive:
        columns = ", ".join(f'({sql}) AS "{name}"' for name, sql in job.derive.items())
        table = _sql(table, f"SELECT *, {columns} FROM rows")
    recomputed = Recomputed({}, set())
    if job.transactions:
        told = facts(job.transactions, job.source.event_time, _plain_rows(job, table))
        recomputed.documents.update(_alerts(job, job.transactions, told))
        by = {name: table.schema.field(name).type for name in job.transactions.by}
        table = pa.Table.from_pylist(told, schema=_facts_schema(job, by))
        for name in (_LATEST, _POSITION):  # facts come as the watermark has it, and never late
            table = table.append_column(name, pa.nulls(len(table), pa.int64()))
    for metric in job.metrics:
        documents, late = _documents(job, metric, table)
        recomputed.documents.update(documents)
        recomputed.late.update((position, metric.name) for position in late)
    return recomputed


def _plain_rows(job: Job, table: pa.Table) -> list[dict[str, Any]]:
    """What transactions are made of, with the event time in epoch milliseconds."""
    assert job.transactions is not None
    time = job.source.event_time
    names = dict.fromkeys([job.transactions.key, job.transactions.event, *job.transactions.by])
    millis = table[time].cast(pa.timestamp("ms")).cast(pa.int64())
    rows: list[dict[str, Any]] = (
        table.select(list(names)).append_column("", millis).rename_columns([*names, time])
    ).to_pylist()
    return rows


def _facts_schema(job: Job, by: Mapping[str, pa.DataType]) -> pa.Schema:
    columns = {
        **dict.fromkeys(("transaction", "what", "stage", "next"), pa.string()),
        "since": TIMESTAMP,
        "seconds": pa.float64(),
        job.source.event_time: TIMESTAMP,
        **by,
    }
    return pa.schema(list(columns.items()))


def _alerts(
    job: Job, spec: TransactionSpec, found: Sequence[Mapping[str, Any]]
) -> dict[str, ExpectedDocument]:
    """The document of each alert as it is when it has ended: all do, by the ``ttl`` at last."""
    stuck = {(f["transaction"], f["stage"], f["since"]) for f in found if f["what"] == "stuck"}
    documents = {}
    for fact in found:
        key, name, since = fact["transaction"], fact["stage"], fact["since"]
        sla = spec.stages[name].sla
        if sla and fact["what"] in ("resolved", "dropped") and (key, name, since) in stuck:
            values = {
                "status": fact["what"],
                "next": fact["next"],
                "ended_at": rfc3339(fact[job.source.event_time]),
                "seconds": fact["seconds"],
            }
            documents[document_id(job.job, "alerts", since, [key, name])] = ExpectedDocument(
                "alerts",
                rfc3339(since),
                rfc3339(since + sla // _MILLISECOND),
                {"transaction": key, "stage": name, **{column: fact[column] for column in spec.by}},
                {value: Expected(text) for value, text in values.items()},
                2,
            )
    return documents


def _first_of_each(
    job: Job, spec: DeduplicateSpec, rows: Iterable[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Without what has an id that was there before, within the horizon."""
    horizon = spec.horizon // _MILLISECOND
    times: defaultdict[Any, list[int]] = defaultdict(list)
    for row in rows:
        id_, time = row[spec.by], row[job.source.event_time]
        if id_ is None or all(abs(time - other) > horizon for other in times[id_]):
            times[id_].append(time)
            yield row


def differences(
    expected: Mapping[str, ExpectedDocument], found: Mapping[str, Mapping[str, Any]]
) -> Iterator[str]:
    """What is wrong with a store's documents (bodies by id), a line each; nothing if all is right."""
    for id_ in sorted(expected.keys() - found.keys()):
        yield f"{id_}: missing"
    for id_ in sorted(found.keys() - expected.keys()):
        yield f"{id_}: not expected"
    for id_ in sorted(expected.keys() & found.keys()):
        want, got = expected[id_], found[id_]
        for name in ("metric", "window_start", "window_end", "dimensions", "events"):
            if getattr(want, name) != got[name]:
                yield f"{id_}: {name} is {got[name]}, not {getattr(want, name)}"
        if want.values.keys() != got["values"].keys():
            yield f"{id_}: values are {sorted(got['values'])}, not {sorted(want.values)}"
            continue
        for name, value in want.values.items():
            if not value.admits(got["values"][name]):
                yield f"{id_}: {name} is {got['values'][name]}, not {value.value}"


def _decode(job: Job, message: Message, parse: Callable[[bytes], Any]) -> dict[str, Any] | None:
    """The event's fields; None for what must be a dead letter."""
    try:
        event = parse(message.value)
        if job.source.format == "sns" and isinstance(event, dict) and "TopicArn" in event:
            event = _parsed(event["Message"].encode()) if event["Type"] == "Notification" else None
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(event, dict):
        return None
    row: dict[str, Any] = {}
    for name, spec in job.fields.items():
        value = event.get(name)
        if value is None:
            if spec.required or name == job.source.event_time:
                return None
        elif spec.type == "timestamp" and isinstance(value, str):
            try:
                value = _millis(value)
            except ValueError:
                return None
        elif spec.type.startswith("decimal"):
            value = _decimal(value, spec.type)
            if value is None:
                return None
        elif isinstance(value, Decimal):  # a number with a point or an exponent
            value = float(value)
            if not _is(value, spec.type):
                return None
        elif not _is(value, spec.type):
            return None
        row[name] = value
    latest = message.timestamp_ms + job.source.max_future // _MILLISECOND
    return row if row[job.source.event_time] <= latest else None


def _millis(text: str | None) -> int | None:
    """Epoch milliseconds of a time of RFC 3339, which is UTC without an offset."""
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    return ((time if time.tzinfo else time.replace(tzinfo=UTC)) - _EPOCH) // _MILLISECOND


def _is(value: Any, type_: str) -> bool:
    match type_:
        case "bool":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "double":
            return type(value) in (int, float) and math.isfinite(value)
    return type(value) is int and -(2**63) <= value < 2**63 and type_ != "timestamp"


def _decimal(value: Any, type_: str) -> Decimal | None:
    """A number, or the text of one, if the type holds it with all of its digits."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        return None
    text = value if isinstance(value, str) else str(value)
    if isinstance(value, str) and not set(value) <= set("0123456789+-.eE"):
        return None  # Python would take 1_000, NaN and other alphabets' digits
    try:
        exact = Decimal(text)
        fitted = exact.quantize(Decimal(1).scaleb(-arrow_type(type_).scale), context=_MANY_DIGITS)
    except InvalidOperation:
        return None
    written = re.split("[eE]", text)
    wide = len(written[0].lstrip("+-0").replace(".", "")) > 38
    far = len(written) > 1 and abs(int(written[1])) > 38
    precision = arrow_type(type_).precision
    fits = (
        fitted == exact
        and abs(fitted.scaleb(arrow_type(type_).scale, _MANY_DIGITS)) < 10**precision
    )
    return fitted if fits and not wide and not far else None


def _enriched(table: pa.Table, spec: EnrichmentSpec, find: Find) -> pa.Table:
    """A key of several columns is found by its parts, with U+001F between."""
    parts = zip(*(table[key].to_pylist() for key in spec.keys), strict=True)
    keys = [None if None in its else "\x1f".join(map(str, its)) for its in parts]
    known = {key: find(key) for key in set(keys) if key is not None}
    unknown = spec.on_missing if isinstance(spec.on_missing, Mapping) else {}
    if spec.on_missing == "dead_letter":
        rows = pa.array([key is None or known[key] is not None for key in keys], pa.bool_())
        table, keys = (
            table.filter(rows),
            [k for k, row in zip(keys, rows.to_pylist(), strict=True) if row],
        )
    for column, added in spec.add.items():
        default = unknown.get(column)
        found: dict[str, Any] = {
            key: default if answer is None else jmespath.search(added.path, answer)
            for key, answer in known.items()
        }
        if added.type == "timestamp":
            found = {key: _millis(value) for key, value in found.items()}
        elif added.type.startswith("decimal"):
            found = {
                key: None if value is None else _decimal(value, added.type)
                for key, value in found.items()
            }
        values = [None if key is None else found[key] for key in keys]
        table = table.append_column(column, pa.array(values, arrow_type(added.type)))
    return table


def _table(rows: Sequence[Mapping[str, Any]], types: Mapping[str, str]) -> pa.Table:
    return pa.table(
        {
            name: pa.array([row[name] for row in rows], arrow_type(type_))
            for name, type_ in types.items()
        }
    )


def _sql(table: pa.Table, query: str) -> pa.Table:
    """A query over all rows at once; times go in and come out without their zone, UTC."""
    for i, column in enumerate(table.schema):
        if column.type == TIMESTAMP:
            table = table.set_column(i, column.name, table[i].cast(pa.timestamp("ms")))
    with duckdb.connect(config={"threads": 1}) as connection:
        connection.register("rows", table)
        return connection.sql(query).to_arrow_table()


def _documents(
    job: Job, metric: MetricSpec, table: pa.Table
) -> tuple[dict[str, ExpectedDocument], list[int]]:
    """And the positions of the messages that are late."""
    wanted = {name: Value.parse(text) for name, text in metric.values.items()}
    calls = [call for value in wanted.values() for call in value.calls]
    columns = [
        f'epoch_ms("{job.source.event_time}")',
        _LATEST,
        _POSITION,
        *(f'"{column}"' for column in metric.by),
        *(f"({call.expression})" if call.expression else "true" for call in calls),
    ]
    selected = _sql(table, f"SELECT {', '.join(columns)} FROM rows WHERE {metric.where or 'true'}")
    everything = list(zip(*(column.to_pylist() for column in selected.columns), strict=True))
    in_time = [row for row in everything if not _is_late(job, metric, row[0], row[1])]
    late = [row[2] for row in everything if _is_late(job, metric, row[0], row[1])]
    columns_in_time = [list(column) for column in zip(*in_time, strict=True)]
    times, _, _, *rest = columns_in_time or [[] for _ in columns]
    keys = list(zip(*rest[: len(metric.by)], strict=True)) or [()] * len(times)
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for group, position in _assign(metric, times, keys):
        groups[group].append(position)
    documents = {}
    window = window_of(metric.window)
    ids = IdTemplate(metric.id, job.job, metric.name, metric.by, window) if metric.id else None
    for (values_of_key, start, end), positions in groups.items():
        key = [_json(value) for value in values_of_key]
        instants = [times[i] for i in positions]
        arguments = iter([column[i] for i in positions] for column in rest[len(metric.by) :])
        values = {
            name: _value(value, list(islice(arguments, len(value.calls))), instants)
            for name, value in wanted.items()
        }
        gap = metric.window.session
        slot = start - start % (gap // _MILLISECOND) if gap else start
        id_ = ids.of(slot, key) if ids else document_id(job.job, metric.name, slot, key)
        documents[id_] = ExpectedDocument(
            metric.name,
            rfc3339(start),
            rfc3339(end),
            dict(zip(metric.by, key, strict=True)),
            values,
            len(positions),
        )
    return documents, late


def _is_late(job: Job, metric: MetricSpec, time: int, latest: int | None) -> bool:
    """Whether the first window that would hold the event was closed when it came."""
    if latest is None:
        return False
    window = metric.window
    watermark = latest - job.source.disorder // _MILLISECOND
    lateness = metric.emit.lateness // _MILLISECOND
    if window.global_:
        return False
    if window.session is not None:
        return time + lateness < watermark
    ends = [end for (_, _, end), _ in _assign(metric, [time], [()])]
    return min(ends) + lateness <= watermark


def _assign(
    metric: MetricSpec, times: Sequence[int], keys: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[tuple[Any, int, int], int]]:
    """Each event's position with each (key, start, end) that it counts in."""
    window = metric.window
    if window.session is not None:
        gap = window.session // _MILLISECOND
        sessions: defaultdict[Any, list[int]] = defaultdict(list)
        for position, key in enumerate(keys):
            sessions[key].append(position)
        for key, positions in sessions.items():
            positions.sort(key=times.__getitem__)
            run: list[int] = []
            for position in positions:
                if run and times[position] - times[run[-1]] >= gap:
                    for member in run:
                        yield (key, times[run[0]], times[run[-1]] + gap), member
                    run = []
                run.append(position)
            for member in run:
                yield (key, times[run[0]], times[run[-1]] + gap), member
        return
    if window.global_:
        for position, key in enumerate(keys):
            yield (key, 0, _END_OF_TIME), position
        return
    if window.timezone is not None:
        assert window.fixed is not None
        for position, (time, key) in enumerate(zip(times, keys, strict=True)):
            yield (key, *_days(time, window.fixed.days, ZoneInfo(window.timezone))), position
        return
    size = (window.fixed or window.sliding or timedelta()) // _MILLISECOND
    every = window.every // _MILLISECOND if window.every else size
    offset = window.offset // _MILLISECOND if window.offset else 0
    for position, (time, key) in enumerate(zip(times, keys, strict=True)):
        start = time - (time - offset) % every
        while start > time - size:
            yield (key, start, start + size), position
            start -= every


def _days(time: int, count: int, zone: ZoneInfo) -> tuple[int, int]:
    """From midnight to midnight, ``count`` days later, by the calendar of the zone."""

    def midnight(day: int) -> int:
        return int(datetime.fromordinal(day).replace(tzinfo=zone).timestamp()) * 1000

    day = (_EPOCH + time * _MILLISECOND).astimezone(zone).toordinal()
    while time >= midnight(day + 1):  # clocks go back over midnight: that day has begun
        day += 1
    day -= (day - _EPOCH.toordinal()) % count
    return midnight(day), midnight(day + count)


def _value(value: Value, arguments: Sequence[Sequence[Any]], times: Sequence[int]) -> Expected:
    """Of one document: for each call what its expression gave for each event, null included."""
    parts = [
        _aggregate(call, [(time, x) for time, x in zip(times, given, strict=True) if x is not None])
        for call, given in zip(value.calls, arguments, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    over, under = (None if part.value is None else Fraction(part.value) for part in parts)
    if over is None or not under:
        return Expected(None)
    ratio = float(over / under)
    error = sum(part.tolerance / abs(part.value) for part in parts if part.tolerance)
    return Expected(ratio, abs(ratio) * error * 1.1)


def _aggregate(call: Call, given: Sequence[tuple[int, Any]]) -> Expected:
    """``given`` are the event times and values."""
    values = [value for _, value in given]
    match call.function:
        case "count":
            return Expected(len(values))
        case "distinct":
            distinct, n = Distinct(), len(set(values))
            error = 1.04 / math.sqrt(2**distinct.log2_registers)
            return Expected(n, 5 * error * n if n > distinct.exact else 0)
        case "top":
            assert isinstance(call.parameter, int)
            counts = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
            if len(counts) > Top(call.parameter).exact:
                return Expected(None)
            shown = counts[: call.parameter]
            return Expected([{"value": _json(value), "count": count} for value, count in shown])
        case "histogram":
            assert isinstance(call.parameter, tuple)
            edges = [-math.inf, *call.parameter, math.inf]
            inside = [sum(a <= value < b for value in values) for a, b in pairwise(edges)]
            return Expected({"bounds": list(call.parameter), "counts": inside})
    if not values:
        return Expected(None)
    match call.function:
        case "sum":
            total = sum(map(Fraction, values))
            if isinstance(values[0], Decimal):
                places = values[0].as_tuple().exponent
                assert isinstance(places, int)
                units = Decimal(int(total / Fraction(10) ** places))
                return Expected(_json(units.scaleb(places, _MANY_DIGITS)))
            return Expected(int(total) if isinstance(values[0], int) else float(total))
        case "mean":
            return Expected(float(sum(map(Fraction, values)) / len(values)))
        case "variance" | "stddev" as which:
            if len(values) < 2:
                return Expected(None)
            mean = sum(map(Fraction, values)) / len(values)
            squares = [(Fraction(value) - mean) ** 2 for value in values]
            variance = float(sum(squares) / (len(values) - 1))
            return Expected(variance if which == "variance" else math.sqrt(variance))
        case "min":
            return Expected(_json(min(values)))
        case "max":
            return Expected(_json(max(values)))
        case "first":
            return Expected(_json(min(given)[1]))
        case "last":
            return Expected(_json(max(given)[1]))
    assert isinstance(call.parameter, float)
    percentile = Percentile(call.parameter)
    rank = math.ceil(Fraction(str(call.parameter)) * len(values) / 100)
    value = float(sorted(values)[rank - 1])
    exact = len(values) <= percentile.exact
    return Expected(value, 0 if exact else percentile.error * abs(value) * 1.000001)


def _json(value: Any) -> Any:
    match value:
        case datetime():
            return rfc3339((value.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND)
        case Decimal():
            return f"{value:f}"
    return value


def _text(value: Any) -> str:
    """What is hashed of a sensitive value."""
    match value:
        case datetime():
            return str((value.replace(tzinfo=UTC) - _EPOCH) // _MILLISECOND)
        case bool() | Decimal():
            return str(_json(value)).lower()
    return str(value)
