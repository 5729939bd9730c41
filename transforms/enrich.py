"""Enrichment: columns looked up by a key, one question per distinct key of a batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple, get_args

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.lookup import MISSING, PART, Answers, Failed, Lookup
from velocity.io.lookup_waiting import Waiting
from velocity.io.metrics import Counter, Distribution, Gauge, counter, histogram
from velocity.io.records import (
    DEAD_LETTERS,
    MESSAGE,
    Cause,
    Stage,
    WithDeadLetters,
    dead_letters,
    main_of,
    messages_of,
    now,
)
from velocity.transforms.answers import Added, Columns, NotOfType, WrongAnswer

REST_CALLS: Final = histogram("rest_calls")
"""How long calls take."""

OnMissing = Literal["null", "dead_letter"] | Mapping[str, Any]
OnError = Literal["wait", "dead_letter", "null"]


@dataclass(frozen=True)
class Enrichment:
    """What to add to each row, by the answer for its key.

    ``key`` names the key's column, or several, ``add`` the columns to add. Rows whose key the
    service does not know become dead letters, or get nulls, or the values that ``on_missing`` gives
    for columns. If the service fails for a key, ``on_error`` says what becomes of its rows: the bundle
    waits for the service, ``wait_at_most`` so many seconds, and then fails, to be tried again by the
    runner; or they become dead letters, or get nulls. A key that the service refuses although it is
    well makes dead letters in place of waiting. ``name`` stands in errors and metrics. Raises
    ``ValueError`` at construction.
    """

    lookup: Lookup
    key: str | tuple[str, ...]
    add: Mapping[str, Added]
    on_missing: OnMissing = "null"
    on_error: OnError = "wait"
    wait_at_most: float = 300.0
    name: str = "enrich"

    def __post_init__(self) -> None:
        if not self.add:
            raise ValueError(f"{self.name}: add: name at least one column")
        if not self.keys:
            raise ValueError(f"{self.name}: key: name at least one column")
        if MESSAGE in self.keys or MESSAGE in self.add:
            raise ValueError(f"{self.name}: {MESSAGE} is reserved; choose another column")
        for key in self.keys:
            if key in self.add:
                raise ValueError(f"{self.name}: add: {key!r} is the key; choose another column")
        if not isinstance(self.on_missing, Mapping) and self.on_missing not in (
            "null",
            "dead_letter",
        ):
            raise ValueError(
                f"{self.name}: on_missing {self.on_missing!r}: give one of null, dead_letter, or "
                "values for columns"
            )
        if self.on_error not in get_args(OnError):
            known = ", ".join(get_args(OnError))
            raise ValueError(f"{self.name}: on_error {self.on_error!r}: give one of {known}")
        if not self.wait_at_most > 0:
            raise ValueError(f"{self.name}: wait_at_most: give seconds above 0")
        _ = self.defaults

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    @property
    def key_text(self) -> str:
        return " and ".join(self.keys)

    @property
    def defaults(self) -> tuple[Any, ...]:
        """Of an unknown key's rows, the values of the columns."""
        given = self.on_missing if isinstance(self.on_missing, Mapping) else {}
        for column, value in given.items():
            if column not in self.add:
                raise ValueError(
                    f"{self.name}: on_missing: {column!r} is none of the columns added"
                )
            try:
                if value is not None:
                    self.add[column].converted(value)
            except NotOfType as came:
                declared = self.add[column].type
                raise ValueError(
                    f"{self.name}: on_missing: {column} is declared {declared}, and given {came}"
                ) from None
        return tuple(
            None if given.get(column) is None else what.converted(given[column])
            for column, what in self.add.items()
        )

    @property
    def columns(self) -> Columns:
        """What is kept of an answer."""
        return Columns(tuple(self.add.items()))

    def schema(self, schema: pa.Schema) -> pa.Schema:
        """The schema of enriched rows, from that of the rows: ``enriched_schema``.

        Raises ``ValueError`` too if there is no column ``key``, or one that has no plain text.
        """
        for key in self.keys:
            if key not in schema.names:
                raise ValueError(f"{self.name}: key: the rows have no column {key!r}")
            kind = schema.field(key).type
            binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
            if pa.types.is_nested(kind) or binary:
                raise ValueError(f"{self.name}: key: {key!r} is {kind}; choose a plain column")
        return enriched_schema(schema, self.add)


class Enriched(NamedTuple):
    """A batch with its columns added, the rows that got none, and what the lookups took."""

    rows: pa.RecordBatch
    dead_letters: pa.RecordBatch
    taken: Sequence[Answers]


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
    enrichments: Sequence[Enrichment],
    clock: Callable[[], datetime] = now,
) -> Enriched:
    """Adds to each row what the lookups know of its keys; none may take its key from another.

    All lookups are at work at once. Each distinct key is asked for once, as text (Arrow's cast of
    the key's column); a key that is null, or null in one of its columns, is not asked for and gives
    nulls, and so does a field that is absent or null. Rows keep their order. A field of another type
    than declared makes dead letters of the key's rows, whatever the policies; no error holds the key
    or the value, which may be a patient's. A row with several problems is one dead letter, by the
    first.

    Raises ``ValueError`` as ``Enrichment.schema``, and ``ServiceUnavailable``.

    >>> from velocity.io.records import MESSAGES
    >>> class Known:
    ...     def begin(self, keys, keep):
    ...         values = [keep({"city": "Bandung"}) if key == "7" else MISSING for key in keys]
    ...         return lambda: Answers(values)
    >>> message = pa.nulls(4, pa.struct(list(MESSAGES)))
    >>> rows = pa.RecordBatch.from_arrays([pa.array([8, 7, None, 7]), message], ["id", "_message"])
    >>> enriched = enrich(rows, [Enrichment(Known(), "id", {"city": Added("city")})])
    >>> enriched.rows["city"].to_pylist()
    [None, 'Bandung', None, 'Bandung']
    """
    schema = rows.schema
    begun = []
    for enrichment in enrichments:
        schema = enrichment.schema(schema)
        keys = _keys(rows, enrichment.keys)
        lookup = enrichment.lookup
        if enrichment.on_error == "wait":
            lookup = Waiting(lookup, enrichment.wait_at_most, enrichment.name)
        wait = lookup.begin(keys.dictionary.to_pylist(), enrichment.columns)
        begun.append((enrichment, keys.indices, wait))
    columns, taken = rows.columns[:-1], []
    problems: dict[int, tuple[Cause, str]] = {}
    for enrichment, indices, wait in begun:
        answers = wait()
        by_column, failed = _columns(answers, enrichment)
        for what, column in zip(enrichment.add.values(), by_column, strict=True):
            columns.append(pa.array(column, what.arrow).take(indices))
        if failed:
            is_failed = pa.array([i in failed for i in range(len(answers.values))], pa.bool_())
            its = is_failed.take(indices).fill_null(False)
            for row in pc.indices_nonzero(its).to_pylist():
                problems.setdefault(row, failed[indices[row].as_py()])
        taken.append(answers)
    enriched = pa.RecordBatch.from_arrays([*columns, rows.columns[-1]], schema=schema)
    letters = pa.RecordBatch.from_pylist([], schema=DEAD_LETTERS)
    if problems:
        order = sorted(problems)
        letters = dead_letters(
            messages_of(rows.take(pa.array(order))),
            stage=Stage.ENRICH,
            causes=[problems[row][0] for row in order],
            errors=[problems[row][1] for row in order],
            failed_at=clock(),
        )
        well = pa.array([row not in problems for row in range(rows.num_rows)], pa.bool_())
        enriched = enriched.filter(well)
    return Enriched(enriched, letters, taken)


def _keys(rows: pa.RecordBatch, columns: Sequence[str]) -> pa.DictionaryArray:
    """The distinct keys as text, and which of them each row has."""
    texts = [rows[column].cast(pa.string()) for column in columns]
    one = texts[0] if len(texts) == 1 else pc.binary_join_element_wise(*texts, PART)
    return pc.dictionary_encode(one)


def _columns(
    answers: Answers, enrichment: Enrichment
) -> tuple[Sequence[Sequence[Any]], dict[int, tuple[Cause, str]]]:
    """The columns to add, an item for each key, and the keys, by index, whose rows fail."""
    if answers.columns is not None:
        return answers.columns, {}
    nulls, defaults, name = (None,) * len(enrichment.add), enrichment.defaults, enrichment.name
    values, failed = [], dict[int, tuple[Cause, str]]()
    for i, answer in enumerate(answers.values):
        value = nulls
        if answer is MISSING:
            value = defaults
            if enrichment.on_missing == "dead_letter":
                error = f"{name}: the service does not know the key in {enrichment.key_text}"
                failed[i] = (Cause.KEY_NOT_FOUND, error)
        elif isinstance(answer, Failed):
            if enrichment.on_error != "null":
                failed[i] = (Cause.SERVICE_FAILED, f"{name}: {answer.error}")
        elif isinstance(answer, WrongAnswer):
            error = f"{name}: the answer for {enrichment.key_text}: {answer.error}"
            failed[i] = (Cause.WRONG_ANSWER, error)
        elif type(answer) is tuple:
            value = answer
        else:
            raise ValueError(f"{name}: the lookup left a key without an answer; mend the lookup")
        values.append(value)
    return list(zip(*values, strict=True)) or [()] * len(nulls), failed


class _Enrich(beam.DoFn):
    DEAD_LETTERS = "dead_letters"

    def __init__(self, enrichments: Sequence[Enrichment], clock: Callable[[], datetime]) -> None:
        self._enrichments = enrichments
        self._clock = clock

    def process(self, element: pa.RecordBatch) -> Iterator[Any]:
        rows, letters, taken = enrich(element, self._enrichments, self._clock)
        for answers in taken:
            _measure(answers)
        counter("enriched_rows").inc(rows.num_rows)
        if letters.num_rows:
            yield beam.pvalue.TaggedOutput(self.DEAD_LETTERS, letters)
        if rows.num_rows:
            yield rows


def _measure(answers: Answers) -> None:
    counter("enrich_keys").inc(len(answers.columns[0] if answers.columns else answers.values))
    if answers.values:
        missing = sum(value is MISSING for value in answers.values)
        counter("enrich_keys_missing").inc(missing)
        counter("enrich_keys_failed").inc(sum(isinstance(v, Failed) for v in answers.values))
    # A lookup of someone's own may count what is declared nowhere.
    for name, count in answers.counts.items():
        Counter(name, {}).inc(count)
    for name, samples in answers.samples.items():
        measured = Distribution(name, {})
        for sample in samples:
            measured.update(sample)
    REST_CALLS.add(answers.samples.get("rest_call_ms", ()))
    for name, state in answers.states.items():
        kind, _, service = name.partition("_")
        Gauge(kind, {"enrichment": service} if service else {}).set(state)


class Enrich(beam.PTransform):
    """Adds columns to batches by looking up the keys in each row: ``enrich`` as a step.

    Takes batches of rows, or a ``WithDeadLetters``, and gives a ``WithDeadLetters``; a batch left
    without rows is not put out. Several enrichments are looked up at once, so none may take its key
    from another: chain steps for that. ``clock`` dates the dead letters. Counts ``enriched_rows``
    (rows put out), ``enrich_keys`` (once per batch that asks), ``enrich_keys_missing`` and
    ``enrich_keys_failed`` of them, and what the lookups count and measure.

        rows | Enrich(Enrichment(RestLookup(...), key="provider_id", add={"city": Added("city")}))
    """

    def __init__(self, *enrichments: Enrichment, clock: Callable[[], datetime] = now) -> None:
        super().__init__()
        if not enrichments:
            raise ValueError("give at least one enrichment")
        added = {column for enrichment in enrichments for column in enrichment.add}
        for enrichment in enrichments:
            for key in enrichment.keys:
                if key in added:
                    raise ValueError(
                        f"{enrichment.name}: key: {key!r} is added by the same step; chain two"
                    )
        self.enrichments = enrichments
        self._clock = clock

    def default_label(self) -> str:
        return f"Enrich {', '.join(enrichment.name for enrichment in self.enrichments)}"

    def expand(self, input_or_inputs: Any) -> Any:  # Beam warns of any other hint
        step = beam.ParDo(_Enrich(self.enrichments, self._clock))
        both = main_of(input_or_inputs) | "Look up and join" >> step.with_output_types(
            pa.RecordBatch, **{_Enrich.DEAD_LETTERS: pa.RecordBatch}
        ).with_outputs(_Enrich.DEAD_LETTERS, main="rows")
        return WithDeadLetters.joining(input_or_inputs, both["rows"], both[_Enrich.DEAD_LETTERS])
