"""What a job file may say: the model of ``pipelines/*.yaml``, and its one documentation."""

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    PlainSerializer,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from velocity.transforms.days import zone_named
from velocity.transforms.decimals import NO_DECIMAL, decimal_type
from velocity.transforms.id_begins import alike, begin_of

_UNITS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_DURATION = re.compile(r"(-?)((?:\d+(?:ms|s|m|h|d))+)")


def parse_duration(text: object) -> timedelta:
    """A duration as a job writes it: numbers with the units d, h, m, s and ms.

    >>> parse_duration("1h30m"), parse_duration("-7h"), parse_duration("500ms")
    (datetime.timedelta(seconds=5400), datetime.timedelta(days=-1, seconds=61200), \
datetime.timedelta(microseconds=500000))
    """
    if isinstance(text, timedelta):
        return text
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    if not match:
        raise ValueError("a duration such as 10s, 1h30m or 500ms is wanted (units: d h m s ms)")
    parts = re.findall(r"(\d+)(ms|s|m|h|d)", match[2])
    millis = sum(int(number) * _UNITS[unit] for number, unit in parts)
    try:
        return timedelta(milliseconds=-millis if match[1] else millis)
    except OverflowError:
        raise ValueError("a duration of less than a million days is wanted") from None


def format_duration(duration: timedelta) -> str:
    """The shortest way to write a duration.

    >>> format_duration(timedelta(minutes=90)), format_duration(timedelta(0))
    ('1h30m', '0s')
    """
    millis, text = abs(duration) // timedelta(milliseconds=1), ""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, millis = divmod(millis, size)
        text += f"{count}{unit}" if count else ""
    return ("-" if duration < timedelta(0) else "") + (text or "0s")


_PATTERN = r"(\d+(ms|s|m|h|d))+"


def _not_negative(duration: timedelta) -> timedelta:
    if duration < timedelta(0):
        raise ValueError("a duration of 0s or more is wanted")
    return duration


def _written(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": ["10s", "1h30m"]})


Shift = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration),
    _written(f"^-?{_PATTERN}$"),
]
Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    AfterValidator(_not_negative),
    PlainSerializer(format_duration),
    _written(f"^{_PATTERN}$"),
]
NAME: Final = r"^[a-z][a-z0-9_]*$"
COLUMN: Final = r"^[A-Za-z][A-Za-z0-9_]*$"
VARIABLE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""In text, what stands for an environment variable."""

LAST_GENERATION: Final = 32_767
"""What is left of a document's version beside the count of its events."""

Name = Annotated[str, Field(pattern=NAME, max_length=64)]
Column = Annotated[str, Field(pattern=COLUMN, max_length=128)]
Expression = Annotated[str, Field(min_length=1)]


def _decimal(name: str) -> str:
    if not name.startswith("decimal"):
        raise PydanticCustomError("decimal_type", "decimal(18, 2) is wanted")
    if decimal_type(name) is None:
        raise ValueError(f"type {name!r}: {NO_DECIMAL}")
    return name


Decimal = Annotated[
    str,
    AfterValidator(_decimal),
    WithJsonSchema({"type": "string", "pattern": r"^decimal\([0-9]{1,2}, *[0-9]{1,2}\)$"}),
]
"""``decimal(18, 2)``."""
Type = Literal["string", "int64", "double", "bool", "timestamp"] | Decimal
FieldType = Literal["string", "int64", "double", "bool", "timestamp", "timestamp_ms"] | Decimal


def _or_null(*choices: str) -> Any:
    """In YAML ``null`` without quotes is no text; here it means what it says."""
    return (
        BeforeValidator(lambda given: "null" if given is None else given),
        WithJsonSchema({"enum": [None, "null", *choices]}),
    )


Policy = Annotated[Literal["null", "dead_letter"], *_or_null("dead_letter")]
OnError = Annotated[Literal["wait", "dead_letter", "null"], *_or_null("wait", "dead_letter")]


class Model(BaseModel):
    """Unknown keys are errors; a model does not change once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shorthand(Model):
    """A model that may be written as the value of the key ``_shorthand`` names: text, or a list."""

    @classmethod
    def _shorthand(cls) -> str:
        raise NotImplementedError

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, given: Any) -> Any:
        return {cls._shorthand(): given} if isinstance(given, str | list) else given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        whole = handler.resolve_ref_schema(handler(core))
        short = whole["properties"][cls._shorthand()]
        return {"anyOf": [{k: v for k, v in short.items() if k != "default"}, whole]}


class FieldSpec(Shorthand):
    """A field of the events. Short: its type alone."""

    type: FieldType = Field(
        description="`timestamp` is a string of RFC 3339, `timestamp_ms` epoch milliseconds, "
        "`decimal(18, 2)` a number or a string of up to 18 digits, 2 of them after the point, exact."
    )
    required: bool = Field(
        False, description="Whether an event without it goes to the dead letters."
    )

    @classmethod
    def _shorthand(cls) -> str:
        return "type"


StartOffsets = dict[str, dict[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]]
"""By topic and partition."""


class KafkaSource(Model):
    """Topics to read."""

    bootstrap_servers: str = Field(description="`HOST:PORT`, several with commas between.")
    topics: list[str] = Field(
        min_length=1,
        description="Names of topics; one that begins with `^` is a regular expression, and stands "
        "for all whose whole name it matches, also those that come later.",
    )
    start: Literal["earliest", "latest", "committed"] | AwareDatetime | StartOffsets = Field(
        "earliest",
        description="Where a job that has no position yet starts: an end, what `group` has been "
        "told, a time (RFC 3339), or offsets by topic and partition: `{orders: {0: 17, 1: 4}}`; "
        "partitions that are not named start at the earliest.",
    )
    discover_every: Duration = Field(
        timedelta(seconds=10),
        description="How often a job without end looks for new partitions and topics.",
    )
    on_lost_offsets: Literal["fail", "earliest"] = Field(
        "fail",
        description="What happens when the broker has deleted what is to be read next: the job "
        "fails, or goes on at the earliest that is left, and counts `offsets_lost`.",
    )
    group: str | None = Field(
        None,
        min_length=1,
        description="A consumer group that is told how far the job has read, after each "
        "checkpoint, for tools that show its lag. Nothing else must use it.",
    )
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="librdkafka's own options, security among them; secrets as `${ENV}`.",
    )

    @model_validator(mode="after")
    def _group_has_committed(self) -> "KafkaSource":
        if self.start == "committed" and self.group is None:
            raise ValueError("start: committed needs the group that has committed")
        return self


class RegistrySpec(Shorthand):
    """The Schema Registry that has the schemas of the messages. Short: its address alone."""

    registry: str = Field(description="`http://HOST:PORT`, several with commas between.")
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="Of confluent-kafka's `SchemaRegistryClient`, such as `basic.auth.user.info`; "
        "secrets as `${ENV}`.",
    )

    @classmethod
    def _shorthand(cls) -> str:
        return "registry"


class FormatSpec(Model):
    """Of messages whose schema is in a registry: exactly one."""

    avro: RegistrySpec | None = Field(None, description="Avro records.")
    protobuf: RegistrySpec | None = Field(None, description="Protobuf messages.")

    @model_validator(mode="after")
    def _exactly_one(self) -> "FormatSpec":
        if (self.avro is None) == (self.protobuf is None):
            raise ValueError("give exactly one of avro and protobuf")
        return self


class DeduplicateSpec(Model):
    """Of events with one id the first counts: SNS and producers deliver some twice."""

    by: Column = Field(description="The field that holds an event's id; events without are kept.")
    horizon: Duration = Field(
        description="How far apart in event time two events of one id are one, and how late a copy "
        "may come and still be known for one. Each id is kept for so long."
    )
    shards: int = Field(
        16,
        ge=1,
        le=1024,
        description="In how many parts ids are kept: no more subtasks can do this step at a time. "
        "It can't change for a job that resumes from a savepoint.",
    )


Format = Annotated[
    Annotated[Literal["json", "sns"], Tag("name")] | Annotated[FormatSpec, Tag("keys")],
    Discriminator(lambda given: "keys" if isinstance(given, dict | FormatSpec) else "name"),
]


class Source(Model):
    """Where events come from, and what time they happened."""

    kafka: KafkaSource
    format: Format = Field(
        "json",
        description="`json`: one JSON object in each message. `sns`: the same in the envelope of "
        "SNS, or bare where a subscription delivers raw messages.",
    )
    event_time: Column = Field(description="The field that says when an event happened.")
    deduplicate: DeduplicateSpec | None = Field(
        None, description="Without it each copy of an event counts."
    )
    disorder: Duration = Field(
        timedelta(seconds=30),
        description="How far behind the latest event of its partition an event may come and still "
        "be in time: the watermark keeps that distance.",
    )
    idle_after: Duration = Field(
        timedelta(seconds=60),
        description="After how long a partition without events no longer holds windows open.",
    )
    max_future: Duration = Field(
        timedelta(minutes=10),
        description="How far past the broker's timestamp an event time may be; what claims more "
        "goes to the dead letters and can't drag the watermark along.",
    )


class AddedSpec(Shorthand):
    """A column that an enrichment adds. Short: its path alone."""

    path: str = Field(
        description="Where the answer has it: a JMESPath expression, such as `address.city`."
    )
    type: Type = Field("string", description="Of the column; another in the answer is an error.")

    @classmethod
    def _shorthand(cls) -> str:
        return "path"


class CacheSpec(Model):
    """What is remembered of the answers, in each worker process."""

    ttl: Duration = Field(timedelta(minutes=10), description="How long an answer holds.")
    missing_ttl: Duration = Field(
        timedelta(seconds=30), description="How long it holds that a key is not known."
    )
    size: int = Field(100_000, ge=1, description="Answers, at most.")
    stale_while_revalidate: Duration = Field(
        timedelta(0),
        description="How much longer an old answer is used, while a new one is asked for in the "
        "background.",
    )
    stale_if_error: Duration = Field(
        timedelta(0), description="How much longer an old answer is used if the service fails."
    )
    redis: str | None = Field(
        None,
        description="`redis://HOST:PORT/DATABASE`: a Redis in which all workers share answers.",
    )


class TimeoutSpec(Model):
    """How long a call may take."""

    connect: Duration = Field(timedelta(seconds=2), description="To reach the service.")
    read: Duration = Field(timedelta(seconds=10), description="From one byte to the next.")
    total: Duration = Field(timedelta(seconds=30), description="From its begin to the last byte.")


class BreakerSpec(Model):
    """When no calls are made to a host that fails."""

    failures: int = Field(10, ge=1, description="In a row, after which no call is made.")
    open_for: Duration = Field(
        timedelta(seconds=5), description="How long; then one call shows whether it is well again."
    )


class TokenSpec(Model):
    """A bearer token that expires: from exactly one of `url` and `command`."""

    url: str | None = Field(None, description="Of an OAuth 2 server (client credentials).")
    client_id: str | None = Field(None, description="With `url`.")
    client_secret: str | None = Field(None, description="With `url`; as `${ENV}`.")
    scope: str | None = Field(None, description="With `url`.")
    command: str | None = Field(None, description="A program that prints a token; no shell.")
    ttl: Duration = Field(
        timedelta(minutes=5),
        description="How long a token holds that a command has printed, or whose server does not "
        "say.",
    )


class EnrichmentSpec(Model):
    """A service that knows more of a key: exactly one of `get`, `post`, `python` and `beam`."""

    name: Name = Field(description="Stands in errors, in metrics and in the plan.")
    get: str | None = Field(
        None,
        description="The address to GET. `{keys}` becomes the keys, with commas between; or `{key}` "
        "the one key of a call, if the service takes no more.",
    )
    post: str | None = Field(None, description="The address to POST `body` to.")
    body: dict[str, Any] | None = Field(
        None,
        description="With `post`, JSON: the text `{keys}` becomes the list of keys, `{key}` the one "
        "key of a call.",
    )
    python: str | None = Field(
        None,
        description="`MODULE:NAME` of a class of yours that makes requests and reads answers.",
    )
    beam: str | None = Field(
        None,
        description="`MODULE:NAME` of what makes a handler of Beam's `Enrichment`.",
    )
    key: Column | list[Column] = Field(
        description="The column that holds the key; or several, each `{COLUMN}` of an address."
    )
    id: str | list[str] | None = Field(
        None,
        description="The field of each answered object that holds its key (JMESPath), one for each "
        "column of the key. Without it the answer is an object by key, or the one object.",
    )
    items: str | None = Field(
        None, description="Where the answer holds the objects (JMESPath); without, it is them."
    )
    add: dict[Column, AddedSpec] = Field(min_length=1, description="The columns to add.")
    max_keys: int = Field(100, ge=1, description="Keys in one call, at most.")
    headers: dict[str, str] = Field(
        default_factory=dict, description="Sent with each call; secrets as `${ENV}`."
    )
    token: TokenSpec | None = None
    concurrency: int = Field(8, ge=1, le=256, description="Calls at a time, in each process.")
    rate: float | None = Field(
        None, gt=0, description="Calls a second to the host, at most, from each process."
    )
    timeouts: TimeoutSpec = Field(default_factory=TimeoutSpec)
    retries: int = Field(5, ge=0, le=100, description="How often a failed call is made again.")
    breaker: BreakerSpec = Field(default_factory=BreakerSpec)
    cache: CacheSpec = Field(default_factory=CacheSpec)
    on_missing: Policy | dict[Column, str | int | float | bool | None] = Field(
        "null",
        description="What becomes of events whose key the service does not know; `{city: unknown}` "
        "gives columns values.",
    )
    on_error: OnError = Field(
        "wait",
        description="What becomes of events whose key can't be looked up after all retries: `wait` "
        "holds them, and all behind them, until the service is back.",
    )
    wait_at_most: Duration = Field(
        timedelta(minutes=5),
        description="How long a bundle waits before it fails, and the runner begins it again; less "
        "than the runner's patience with a checkpoint.",
    )

    @property
    def keys(self) -> tuple[str, ...]:
        """The columns of the key."""
        return (self.key,) if isinstance(self.key, str) else tuple(self.key)

    @model_validator(mode="after")
    def _one_source(self) -> "EnrichmentSpec":
        given = [key for key in ("get", "post", "python", "beam") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of get, post, python and beam")
        if (self.body is None) != (self.post is None):
            raise ValueError("post and body go together")
        if not self.keys:
            raise ValueError("key: name at least one column")
        return self


def _known(name: str) -> str:
    zone_named(name)
    return name


class WindowSpec(Model):
    """Exactly one of `fixed`, `sliding` (with `every`), `session` and `global`."""

    model_config = ConfigDict(serialize_by_alias=True)

    fixed: Duration | None = Field(None, description="The length of windows side by side.")
    offset: Shift | None = Field(
        None, description="With `fixed`: shifts the start from where UTC would have it."
    )
    timezone: Annotated[str, AfterValidator(_known)] | None = Field(
        None,
        description="With `fixed` of whole days: they are days there, from midnight to midnight, of "
        "23 or 25 hours where clocks change. A name such as `Asia/Jakarta`.",
    )
    sliding: Duration | None = Field(None, description="The length of windows that overlap.")
    every: Duration | None = Field(None, description="With `sliding`: from start to start.")
    session: Duration | None = Field(
        None, description="The gap that ends a session of a key's events."
    )
    global_: bool = Field(
        False,
        alias="global",
        description="One window of all time, which never ends. It needs `emit.early`, and "
        "takes no `lateness`: nothing is late. A state is kept for each key, for ever.",
    )

    @model_validator(mode="after")
    def _exactly_one(self) -> "WindowSpec":
        kinds = (self.fixed, self.sliding, self.session, self.global_ or None)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("give exactly one of fixed, sliding, session and global")
        if (self.every is None) != (self.sliding is None):
            raise ValueError("sliding and every go together")
        if self.sliding is not None and self.every is not None and self.every > self.sliding:
            raise ValueError("every is longer than sliding: events between windows would not count")
        if self.offset is not None and self.fixed is None:
            raise ValueError("offset goes with fixed")
        if self.timezone is not None:
            if self.offset is not None:
                raise ValueError("timezone and offset exclude each other: days begin at midnight")
            if not self.fixed or self.fixed % timedelta(days=1):
                raise ValueError(
                    "timezone goes with fixed of whole days, such as 1d; for shorter windows "
                    "shift the start by offset"
                )
        return self


class EmitSpec(Model):
    """When a window's document is written."""

    early: Duration | None = Field(
        None,
        description="While the window is open: so often (whole seconds), marked `early`. "
        "Without it, once the watermark has passed the window.",
    )
    lateness: Duration = Field(
        timedelta(0),
        description="How long after that late events still correct the document, marked `late`.",
    )


class MetricSpec(Model):
    """One metric: a document for each key and window."""

    name: Name = Field(description="Of the documents.")
    description: str = Field("", description="For people.")
    where: Expression | None = Field(None, description="A SQL condition: which events count.")
    by: list[Column] = Field(default_factory=list, description="The columns that make the key.")
    window: WindowSpec
    emit: EmitSpec = Field(default_factory=EmitSpec)
    id: str | None = Field(
        None,
        min_length=1,
        description="Of its documents, instead of `job/metric/window/[key]`: `order-{order_id}`. It "
        "must have each column of `by` and, unless the window is global, `{window_start}` (by a format "
        "such as `%Y-%m-%dT%H:%M`, if that tells all windows apart), and may have `{job}` and "
        "`{metric}`. See docs/documents.md.",
    )
    values: dict[Name, Expression] = Field(
        min_length=1,
        description="Names with aggregates: `count()`, `count(x)`, `sum(x)`, `min(x)`, `max(x)`, "
        "`mean(x)` and more, see Aggregates; x is a SQL expression of one row.",
    )
    units: dict[Name, str] = Field(
        default_factory=dict,
        description="Of values, by their names, as people read them beside the number: `IDR`, `km`.",
    )

    @model_validator(mode="after")
    def _units_of_values(self) -> "MetricSpec":
        if unknown := self.units.keys() - self.values.keys():
            raise ValueError(f"units: {', '.join(sorted(unknown))} is none of the values")
        return self


class BulkSpec(Model):
    """When the documents of a bundle are sent: at the first of these, and at its end."""

    documents: int = Field(1_000, ge=1, description="So many, at most.")
    bytes: int = Field(5_000_000, ge=1, description="So large, unless one alone is larger.")
    age: Duration = Field(
        timedelta(seconds=5), description="So long after the first of them, at the latest."
    )


class StageSpec(Model):
    """A stage, by its name; the first of its events enters it."""

    events: list[str] = Field(min_length=1, description="Values of `event`; of one stage each.")
    next: list[Name] = Field(
        default_factory=list,
        description="The stages that may follow. A later one, whose predecessor's event was lost, "
        "counts too. Without, the stage is the end of a way.",
    )
    sla: Duration | None = Field(
        None,
        description="How long a transaction may stay: then it is `stuck`, and an alert says so.",
    )
    ttl: Duration | None = Field(
        None,
        description="How long it is waited for at all: then it is `dropped`. Without, as for all.",
    )


class AlertSpec(Model):
    """Where alerts go besides the sinks, for those who act on them."""

    kafka: str = Field(
        description="A topic of the source's cluster: the transaction as key, the document as JSON."
    )


class TransactionSpec(Model):
    """Transactions: events of one key joined, in event time, by a graph of stages.

    With it the metrics are computed of facts, one for each thing that becomes known of a
    transaction, with these columns: `transaction` (the key), `what`, `stage`, `next` (where it
    has moved on to), `since` (when it entered the stage), `seconds` (from then on), the event time,
    and the columns of `by`. `what` is `entered`, `moved`, `stuck` (longer than the `sla`),
    `resolved` (stuck, and moved on) or `dropped` (longer than the `ttl`).
    """

    key: Column = Field(description="The column that names the transaction.")
    event: Column = Field(description="The column that says what happened; text.")
    by: list[Column] = Field(
        default_factory=list,
        description="Columns that facts and alerts keep, from the transaction's first event.",
    )
    lateness: Duration = Field(
        timedelta(0),
        description="How long after the watermark events are still waited for, before anything "
        "is said that they could change. Metrics need an `emit.lateness` that is longer.",
    )
    ttl: Duration = Field(
        timedelta(hours=6),
        description="How long a stage is waited in, and a transaction remembered after its last.",
    )
    stages: dict[Name, StageSpec] = Field(min_length=1, description="The graph.")
    alerts: AlertSpec | None = None


class ElasticsearchSink(Model):
    """Documents into Elasticsearch 8 or 9."""

    url: str | None = Field(None, description="`http://HOST:PORT`, several with commas between.")
    cloud_id: str | None = Field(
        None, description="Of a deployment of Elastic Cloud; instead of `url`."
    )
    index: str = Field(
        description="Name of the index; may hold `{window_start:%Y.%m}`, `{job}` and `{metric}`."
    )
    api_key: str | None = Field(None, description="As `${ENV}`.")
    username: str | None = Field(None, description="With `password`; instead of `api_key`.")
    password: str | None = Field(None, description="As `${ENV}`.")
    ca_certs: str | None = Field(
        None, description="File with the certificate of the authority that signed the server's."
    )
    fingerprint: str | None = Field(
        None,
        description="SHA-256 of the server's certificate, or of one that signed it, in "
        "hexadecimal; instead of `ca_certs`.",
    )
    data_stream: bool = Field(
        False,
        description="Whether `index` names data streams. They take a document once and no "
        "correction, so no metric may have `early` or `lateness`.",
    )
    alias: str | None = Field(
        "velocity-{job}", description="Under which all of the job is read; null for none."
    )
    settings: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="Of new indices, as Elasticsearch names them: `number_of_replicas: 2`.",
    )
    retention: Duration | None = Field(
        None, description="For how long a window is kept, at least; then its index is deleted."
    )
    ilm_policy: str | None = Field(
        None, description="A policy of yours that rules new indices; instead of `retention`."
    )
    setup: Literal["at_start", "by_command"] = Field(
        "at_start",
        description="Who makes templates, alias and policy: each run as it starts, or only "
        "`velocity setup`.",
    )
    bulk: BulkSpec = Field(default_factory=BulkSpec)
    retry_for: Duration = Field(
        timedelta(seconds=60),
        description="How long a bulk that fails is tried before its bundle fails, and the runner "
        "tries that again.",
    )

    @model_validator(mode="after")
    def _one_server(self) -> "ElasticsearchSink":
        if (self.url is None) == (self.cloud_id is None):
            raise ValueError("give exactly one of url and cloud_id")
        if self.ca_certs is not None and self.fingerprint is not None:
            raise ValueError("give ca_certs or fingerprint, not both")
        return self

    @model_validator(mode="after")
    def _one_identity(self) -> "ElasticsearchSink":
        if (self.username is None) != (self.password is None):
            raise ValueError("username and password go together")
        if self.api_key is not None and self.username is not None:
            raise ValueError("give api_key, or username and password, not both")
        return self

    @model_validator(mode="after")
    def _one_end(self) -> "ElasticsearchSink":
        if self.retention is None:
            return self
        if self.ilm_policy is not None:
            raise ValueError("give retention or ilm_policy, not both")
        if self.retention < timedelta(hours=1):
            raise ValueError("retention: an hour or more is wanted")
        if not self.data_stream and "{window_start" not in self.index:
            raise ValueError(
                "retention deletes whole indices: put a time such as {window_start:%Y.%m} into "
                "index, or set data_stream"
            )
        return self


class SqliteSink(Model):
    """Documents into a SQLite file, for one machine."""

    path: str = Field(description="Of the file; it is made if it is not there.")


class InfluxSink(Model):
    """Documents into InfluxDB 1.8, 2 or 3, as points: docs/influx.md."""

    url: str = Field(description="`http://HOST:PORT`.")
    bucket: str = Field(description="Its name; of 1.8 `DATABASE/RETENTION_POLICY`.")
    org: str | None = Field(None, description="Of InfluxDB 2.")
    token: str | None = Field(None, description="As `${ENV}`; of 1.8 `USER:PASSWORD`.")
    bulk: BulkSpec = Field(default_factory=lambda: BulkSpec(documents=5_000))
    retry_for: Duration = Field(
        timedelta(seconds=60),
        description="How long a write that fails is tried before its bundle fails, and the runner "
        "tries that again.",
    )


class KafkaSink(Model):
    """Events into Kafka, for other jobs and consumers: JSON objects of all columns that have a value.

    Each keeps the timestamp of the message that it came from. They are written at least once:
    consumers that must not count one twice go by `event_id`, as `source.deduplicate` does.
    """

    topic: str | None = Field(
        None,
        description="Where they go; may hold `{topic}`, which is that of the message that an event "
        "came in, and `{COLUMN}`.",
    )
    topics: dict[str, str] = Field(
        default_factory=dict,
        description="Where they go, by the topic of their messages; the others go to `topic`.",
    )
    key: Column | None = Field(
        None,
        description="The column of the key, which decides on the partition. Without it both are those "
        "of the message, and what was in order stays so; each topic must have as many partitions "
        "as its source.",
    )
    headers: list[Column] = Field(
        default_factory=list, description="Columns that become headers of their names."
    )
    event_id: Column | None = Field(
        None, description="The column that becomes the header `event_id`."
    )
    bootstrap_servers: str | None = Field(
        None, description="`HOST:PORT`, of another cluster than the source's."
    )
    options: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="librdkafka's own for that other cluster; secrets as `${ENV}`.",
    )

    @model_validator(mode="after")
    def _somewhere(self) -> "KafkaSink":
        if self.topic is None and not self.topics:
            raise ValueError("give topic or topics, or both")
        if self.options and self.bootstrap_servers is None:
            raise ValueError("options go with bootstrap_servers; else those of the source hold")
        return self


class Sinks(Model):
    """Where documents go, to one store or the same ones to several; and events, if they are wanted."""

    elasticsearch: ElasticsearchSink | None = None
    sqlite: SqliteSink | None = None
    influx: InfluxSink | None = None
    kafka: KafkaSink | None = None

    @model_validator(mode="after")
    def _any(self) -> "Sinks":
        if not (self.of_documents or self.kafka):
            raise ValueError("give elasticsearch or sqlite, or influx; or kafka for events alone")
        return self

    @property
    def of_documents(self) -> Mapping[str, Model]:
        """Those that documents go to, by name."""
        return {
            name: sink
            for name in ("elasticsearch", "sqlite", "influx")
            if (sink := getattr(self, name)) is not None
        }


class ArchiveSpec(Model):
    """Where events are kept as Parquet files, by the hour of their event time: docs/archive.md."""

    path: str = Field(description="A folder: local, `s3://BUCKET/…` or `gs://BUCKET/…`.")
    raw: bool = Field(
        False, description="Whether each decoded event's message is kept as the broker had it."
    )
    enriched: bool = Field(
        True, description="Whether its columns are kept, after enrichment and derivation."
    )
    rows_per_file: int = Field(500_000, ge=1, description="At most.")

    @model_validator(mode="after")
    def _anything(self) -> "ArchiveSpec":
        if not (self.raw or self.enriched):
            raise ValueError("give raw or enriched, or both, or leave the archive out")
        return self


class SensitiveSpec(Shorthand):
    """Fields that are dropped, or hashed, before anything is stored or logged. Short: their names."""

    fields: list[Column] = Field(
        min_length=1, description="Fields of the events, or columns that an enrichment adds."
    )
    hash_with: str | None = Field(
        None,
        min_length=1,
        description="A secret, as `${ENV}`: with it fields are hashed (HMAC-SHA256), and can still be "
        "counted and grouped by; without it they are dropped after enrichment.",
    )

    @classmethod
    def _shorthand(cls) -> str:
        return "fields"


class DeadLetterSpec(Model):
    """Where events go that can't be carried to their end: exactly one."""

    kafka: str | None = Field(None, description="A topic of the source's cluster.")
    parquet: str | None = Field(None, description="A folder.")

    @model_validator(mode="after")
    def _exactly_one(self) -> "DeadLetterSpec":
        if (self.kafka is None) == (self.parquet is None):
            raise ValueError("give exactly one of kafka and parquet")
        return self


class Job(Model):
    """A job: events in, metrics out.

    Text may hold `${NAME}`, which stands for the environment variable when the job runs; wherever
    the job is printed it stands for itself.
    """

    job: Name = Field(description="Its name, in every document and dead letter.")
    generation: int = Field(
        0,
        ge=0,
        le=LAST_GENERATION,
        description="Of its logic: documents of a later one replace those of an earlier one, also if "
        "they count fewer events.",
    )
    description: str = Field("", description="For people.")
    source: Source
    fields: dict[Column, FieldSpec] = Field(
        min_length=1, description="The fields of an event that are read; others are ignored."
    )
    filter: Expression | None = Field(
        None, description="A SQL condition: events that don't meet it are left out, unenriched."
    )
    enrich: list[EnrichmentSpec] = Field(
        default_factory=list,
        description="Those that need nothing of each other are looked up at once; one whose `key` "
        "another adds comes after it.",
    )
    sensitive: SensitiveSpec | None = Field(
        None, description="Fields that are dropped, or hashed, before anything is stored or logged."
    )
    derive: dict[Column, Expression] = Field(
        default_factory=dict, description="Columns computed after enrichment, by SQL expressions."
    )
    transactions: TransactionSpec | None = None
    metrics: list[MetricSpec] = Field(
        default_factory=list,
        description="What is counted; a job that has `sinks.kafka` may do without.",
    )
    sinks: Sinks
    dead_letters: DeadLetterSpec
    archive: ArchiveSpec | None = Field(
        None, description="Events kept as Parquet files, for replays and batch readers."
    )

    @model_validator(mode="after")
    def _raw_archive_holds_nothing_sensitive(self) -> "Job":
        if self.sensitive is not None and self.archive is not None and self.archive.raw:
            raise PydanticCustomError(
                "sensitive_archive",
                "archive.raw keeps messages whole, with their sensitive fields: leave raw out",
                {"place": ("archive", "raw")},
            )
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Job":
        for key, names in (
            ("enrich", [enrichment.name for enrichment in self.enrich]),
            ("metrics", [metric.name for metric in self.metrics]),
        ):
            for i, name in enumerate(names):
                if name in names[:i]:
                    raise PydanticCustomError(
                        "duplicate_name",
                        "{key}: the name {name} is given twice",
                        {"key": key, "name": name, "place": (key, i, "name")},
                    )
        return self

    @model_validator(mode="after")
    def _documents_and_their_places_go_together(self) -> "Job":
        wrong: tuple[str, tuple[str, ...]] | None = None
        if self.metrics and not self.sinks.of_documents:
            wrong = (
                "sinks: metrics need elasticsearch or sqlite, or influx, for their documents",
                ("sinks",),
            )
        elif not self.metrics and self.sinks.kafka is None:
            wrong = "metrics: count something, or give sinks.kafka for the events", ()
        elif not self.metrics and self.transactions:
            wrong = "transactions are for metrics to count: give some", ("transactions",)
        elif not self.metrics and self.sinks.of_documents:
            name = next(iter(self.sinks.of_documents))
            wrong = f"no metrics, so no documents for {name}: leave it out", ("sinks", name)
        if wrong:
            raise PydanticCustomError("documents", "{text}", {"text": wrong[0], "place": wrong[1]})
        return self

    @model_validator(mode="after")
    def _influx_takes_nothing_back(self) -> "Job":
        for i, metric in enumerate(self.metrics if self.sinks.influx else ()):
            if metric.window.session and (metric.emit.early is not None or metric.emit.lateness):
                text = (
                    "sessions that are shown before they end may merge, and InfluxDB takes no point "
                    "back: leave early and lateness out, or sinks.influx"
                )
                place = ("metrics", i, "emit")
                raise PydanticCustomError("influx", "{text}", {"text": text, "place": place})
        return self

    @model_validator(mode="after")
    def _data_streams_take_no_corrections(self) -> "Job":
        if self.sinks.elasticsearch and self.sinks.elasticsearch.data_stream:
            if self.transactions:
                raise PydanticCustomError(
                    "corrected_in_data_stream", "transactions", {"place": ("transactions",)}
                )
            for i, metric in enumerate(self.metrics):
                if metric.emit.early is not None or metric.emit.lateness:
                    raise PydanticCustomError(
                        "corrected_in_data_stream",
                        "{name}",
                        {"name": metric.name, "place": ("metrics", i, "emit")},
                    )
        return self

    @model_validator(mode="after")
    def _global_windows_are_shown_and_kept(self) -> "Job":
        sink = self.sinks.elasticsearch
        for i, metric in enumerate(self.metrics):
            wrong = {}
            if metric.window.global_ and metric.emit.early is None:
                wrong["window"] = (
                    "a global window never ends: say by emit.early how often its document is written"
                )
            elif metric.window.global_ and metric.emit.lateness:
                wrong["emit"] = "nothing is late for a global window: leave lateness out"
            elif metric.window.global_ and sink and (sink.retention or sink.ilm_policy):
                wrong["window"] = (
                    "a global window never ends, and retention or ilm_policy would delete its index "
                    "while it still counts: put the metric into a job of its own"
                )
            for key, text in wrong.items():
                place = ("metrics", i, key)
                raise PydanticCustomError("global_window", text, {"place": place})
        return self

    @model_validator(mode="after")
    def _ids_begin_differently(self) -> "Job":
        """So that no document of one metric replaces one of another."""
        names = [metric.name for metric in self.metrics] + ["alerts"] * bool(self.transactions)
        begins = {name: f"{self.job}/{name}/" for name in names}
        begins |= {m.name: begin_of(m.id, self.job, m.name) for m in self.metrics if m.id}
        for i, metric in enumerate(self.metrics):
            for other, begin in begins.items() if metric.id else ():
                if other != metric.name and alike(begins[metric.name], begin):
                    text = (
                        f"might be the id of a document of {other} too: begin it with a word of its "
                        f"own, such as {metric.name}/"
                    )
                    place = ("metrics", i, "id")
                    raise PydanticCustomError("id", text, {"place": place})
        return self

    @model_validator(mode="after")
    def _metrics_fit_the_transactions(self) -> "Job":
        for i, metric in enumerate(self.metrics if self.transactions else ()):
            assert self.transactions is not None
            wrong = {}
            waits = metric.emit.lateness > self.transactions.lateness
            if not waits and not metric.window.global_:
                wrong["emit"] = "lateness must be longer than that of transactions"
            if metric.name == "alerts":
                wrong["name"] = "the alerts of transactions are called so; choose another name"
            for key, text in wrong.items():
                place = ("metrics", i, key)
                raise PydanticCustomError("transactions", text, {"place": place})
        return self

    @model_validator(mode="after")
    def _columns_differ_by_more_than_case(self) -> "Job":
        """SQL does not tell ``id`` from ``ID``."""
        places: dict[str, tuple[str | int, ...]] = {}
        for place in (
            *(("fields", name) for name in self.fields),
            *(("enrich", i, "add", name) for i, e in enumerate(self.enrich) for name in e.add),
            *(("derive", name) for name in self.derive),
        ):
            first = places.setdefault(str(place[-1]).lower(), place)
            if first is not place and first[-1] != place[-1]:
                raise PydanticCustomError(
                    "ambiguous_column",
                    "{key}: column {name} differs from {first} by case only",
                    {"key": place[0], "name": place[-1], "first": first[-1], "place": place},
                )
        return self
