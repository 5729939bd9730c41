"""Enrichment: columns looked up by a key, one question per distinct key of a batch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, NamedTuple, get_args

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.records import (
    DEAD_LETTERS,
    MESSAGE,
    Answers,
    Cause,
    Lookup,
    Stage,
    WithDeadLetters,
    counter,
    dead_letters,
    main_of,
    messages_of,
    now,
)
from velocity.transforms.answers import NotOfType, values_at
from velocity.transforms.fields import TYPES

OnMissing = Literal["null", "dead_letter"]
OnError = Literal["fail", "dead_letter", "null"]


class EnrichmentFailed(Exception):
    """The service failed for some keys, so the runner shall try the bundle again."""

    def __init__(self, name: str, keys: int, error: str) -> None:
        super().__init__(name, keys, error)  # all of them, so that it survives pickling
        self.name, self.keys, self.error = name, keys, error

    def __str__(self) -> str:
        return f"{self.name}: {self.keys} keys could not be looked up; the first: {self.error}"


@dataclass(frozen=True, slots=True)
class Added:
    """A column to add: the dotted path of a field in the answer, and its type.

    ``type`` is one of ``velocity.transforms.fields.TYPES``; a timestamp must have an offset.
    """

    path: str
    type: str = "string"

    def __post_init__(self) -> None:
        if not all(self.path.split(".")):
            raise ValueError(f"path {self.path!r}: give a dotted path such as address.city")
        if self.type not in TYPES:
            raise ValueError(f"type {self.type!r}: give one of {', '.join(TYPES)}")

    @property
    def arrow(self) -> pa.DataType:
        return TYPES[self.type]


@dataclass(frozen=True)
class Enrichment:
    """What to add to each row, by the answer for its key.

    ``key`` names the key's column, ``add`` the columns to add. Rows whose key the service does
    not know get nulls or become dead letters (``on_missing``). If the service fails for a key,
    its rows get nulls or become dead letters, or the bundle fails (``on_error``). ``name`` stands
    in errors. Raises ``ValueError`` at construction.
    """

    key: str
    add: Mapping[str, Added]
    on_missing: OnMissing = "null"
    on_error: OnError = "fail"
    name: str = "enrich"

    def __post_init__(self) -> None:
        if not self.add:
            raise ValueError(f"{self.name}: add: name at least one column")
        if self.key == MESSAGE or MESSAGE in self.add:
            raise ValueError(f"{self.name}: {MESSAGE} is reserved; choose another column")
        if self.key in self.add:
            raise ValueError(f"{self.name}: add: {self.key!r} is the key; choose another column")
        for option, value, known in (
            ("on_missing", self.on_missing, get_args(OnMissing)),
            ("on_error", self.on_error, get_args(OnError)),
        ):
            if value not in known:
                raise ValueError(f"{self.name}: {option} {value!r}: give one of {', '.join(known)}")

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of enriched rows, from that of the rows: ``enriched_schema``.

        Raises ``ValueError`` too if there is no column ``key``, or one that has no plain text.
        """
        if self.key not in schema.names:
            raise ValueError(f"{self.name}: key: the rows have no column {self.key!r}")
        kind = schema.field(self.key).type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise ValueError(f"{self.name}: key: {self.key!r} is {kind}; choose a plain column")
        return enriched_schema(schema, self.add)


class Enriched(NamedTuple):
    """A batch with its columns added, the rows that got none, and what the lookup took."""

    rows: pa.RecordBatch
    dead_letters: pa.RecordBatch
    counts: Mapping[str, int]


def enriched_schema(schema: pa.Schema, add: Mapping[str, Added]) -> pa.Schema:
    """The schema of enriched rows: the added columns stand before ``MESSAGE``, the last.

    Raises ``ValueError`` if a column of that name is there already.

    >>> rows = pa.schema([("provider_id", pa.string()), ("_message", pa.null())])
    >>> enriched_schema(rows, {"tier": Added("level", "int64")}).names
    ['provider_id', 'tier', '_message']
    >>> enriched_schema(rows, {"provider_id": Added("id")})
    Traceback (most recent call last):
    ValueError: add: the rows have a column 'provider_id' already; choose another name
    """
    if not schema.names or schema.names[-1] != MESSAGE:
        raise ValueError(f"the rows' last column is to be {MESSAGE}; they have {schema.names}")
    for column in add:
        if column in schema.names:
            raise ValueError(f"add: the rows have a column {column!r} already; choose another name")
    added = [pa.field(column, what.arrow) for column, what in add.items()]
    return pa.schema([*list(schema)[:-1], *added, schema.field(MESSAGE)], metadata=schema.metadata)


def enrich(
    rows: pa.RecordBatch,
    lookup: Lookup,
    enrichment: Enrichment,
    clock: Callable[[], datetime] = now,
) -> Enriched:
    """Adds to each row what ``lookup`` knows of its key.

    Each distinct key is asked for once, as text (Arrow's cast of the key's column); a null key is
    not asked for and gives nulls, and so does a field that is absent or null. Rows keep their
    order. A field of another type than declared makes dead letters of the key's rows, whatever
    the policies; its error holds neither the key nor the value, which may be a patient's.

    Raises ``ValueError`` as ``Enrichment.schema``, and ``EnrichmentFailed``.

    >>> from velocity.io.records import MESSAGES, Answers
    >>> class Known:
    ...     def lookup(self, keys):
    ...         return Answers({"7": {"address": {"city": "Bandung"}}}, frozenset({"8"}), {}, {})
    >>> message = pa.nulls(4, pa.struct(list(MESSAGES)))
    >>> rows = pa.RecordBatch.from_arrays([pa.array([8, 7, None, 7]), message], ["id", "_message"])
    >>> enriched = enrich(rows, Known(), Enrichment("id", {"city": Added("address.city")}))
    >>> enriched.rows["city"].to_pylist()
    [None, 'Bandung', None, 'Bandung']
    """
    schema = enrichment.schema(rows.schema)
    keys = pc.dictionary_encode(rows[enrichment.key].cast(pa.string()))
    asked = keys.dictionary.to_pylist()
    answers = lookup.lookup(asked)
    if answers.failed and enrichment.on_error == "fail":
        error = min(answers.failed.items())[1]
        raise EnrichmentFailed(enrichment.name, len(answers.failed), error)
    problems = dict(_unanswered(asked, answers, enrichment))
    objects = [answers.found.get(key) for key in asked]
    added = []
    for column, what in enrichment.add.items():
        values: list[Any] = []
        for index, value in enumerate(values_at(what.path, what.type, objects)):
            if isinstance(value, NotOfType):
                error = (
                    f"{enrichment.name}: the answer for {enrichment.key}: field {what.path} of "
                    f"column {column}: declared {what.type}, came {value}"
                )
                problems.setdefault(index, (Cause.WRONG_ANSWER, error))
            values.append(None if isinstance(value, NotOfType) else value)
        added.append(pa.array(values, what.arrow).take(keys.indices))
    columns = [*rows.columns[:-1], *added, rows.columns[-1]]
    enriched = pa.RecordBatch.from_arrays(columns, schema=schema)
    letters = pa.RecordBatch.from_pylist([], schema=DEAD_LETTERS)
    if problems:
        is_problem = pa.array([index in problems for index in range(len(asked))], pa.bool_())
        fails = is_problem.take(keys.indices).fill_null(False)
        failed = [problems[index] for index in keys.indices.filter(fails).to_pylist()]
        letters = dead_letters(
            messages_of(rows.filter(fails)),
            stage=Stage.ENRICH,
            causes=[cause for cause, _ in failed],
            errors=[error for _, error in failed],
            failed_at=clock(),
        )
        enriched = enriched.filter(pc.invert(fails))
    counts = {
        **answers.counts,
        "enriched_rows": enriched.num_rows,
        "enrich_keys_missing": len(answers.missing),
        "enrich_keys_failed": len(answers.failed),
    }
    return Enriched(enriched, letters, counts)


def _unanswered(
    asked: list[str], answers: Answers, enrichment: Enrichment
) -> Iterator[tuple[int, tuple[Cause, str]]]:
    """The keys, by their index, whose rows become dead letters for want of an answer."""
    name = enrichment.name
    for index, key in enumerate(asked):
        if key in answers.found:
            continue
        if key in answers.failed:
            if enrichment.on_error == "dead_letter":
                yield index, (Cause.SERVICE_FAILED, f"{name}: {answers.failed[key]}")
        elif key not in answers.missing:
            raise ValueError(f"{name}: the lookup left a key without an answer; mend the lookup")
        elif enrichment.on_missing == "dead_letter":
            error = f"{name}: the service does not know the key in {enrichment.key}"
            yield index, (Cause.KEY_NOT_FOUND, error)


class _Enrich(beam.DoFn):
    DEAD_LETTERS = "dead_letters"

    def __init__(
        self, lookup: Lookup, enrichment: Enrichment, clock: Callable[[], datetime]
    ) -> None:
        self._lookup = lookup
        self._enrichment = enrichment
        self._clock = clock

    def process(self, element: pa.RecordBatch) -> Iterator[Any]:
        rows, letters, counts = enrich(element, self._lookup, self._enrichment, self._clock)
        for name, count in counts.items():
            counter(name).inc(count)
        if letters.num_rows:
            yield beam.pvalue.TaggedOutput(self.DEAD_LETTERS, letters)
        if rows.num_rows:
            yield rows


class Enrich(beam.PTransform):
    """Adds columns to batches by looking up the key in each row: ``enrich`` as a step.

    Takes batches of rows, or a ``WithDeadLetters``, and gives a ``WithDeadLetters``; a batch left
    without rows is not put out. Options are those of ``Enrichment``; ``clock`` dates the dead
    letters. Counts ``enriched_rows`` (rows put out), ``enrich_keys_missing``,
    ``enrich_keys_failed`` (once per batch that asks) and what the lookup counts.

        rows | Enrich(RestLookup(url, id="id"), key="provider_id", add={"city": Added("city")})
    """

    def __init__(
        self,
        lookup: Lookup,
        *,
        key: str,
        add: Mapping[str, Added],
        on_missing: OnMissing = "null",
        on_error: OnError = "fail",
        name: str = "enrich",
        clock: Callable[[], datetime] = now,
    ) -> None:
        super().__init__()
        self._enrichment = Enrichment(key, add, on_missing, on_error, name)
        self._lookup = lookup
        self._clock = clock

    def default_label(self) -> str:
        return f"Enrich {self._enrichment.name}"

    def expand(self, input_or_inputs: Any) -> Any:  # Beam warns of any other hint
        step = beam.ParDo(_Enrich(self._lookup, self._enrichment, self._clock))
        both = main_of(input_or_inputs) | "Look up and join" >> step.with_output_types(
            pa.RecordBatch, **{_Enrich.DEAD_LETTERS: pa.RecordBatch}
        ).with_outputs(_Enrich.DEAD_LETTERS, main="rows")
        return WithDeadLetters.joining(input_or_inputs, both["rows"], both[_Enrich.DEAD_LETTERS])
