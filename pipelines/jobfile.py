"""Job files: YAML read to a ``Job``, and all that is wrong with one, line by line."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from velocity.pipelines.job import (
    COLUMN,
    NAME,
    VARIABLE,
    EmitSpec,
    Job,
    MetricSpec,
    WindowSpec,
)

if TYPE_CHECKING:
    from velocity.pipelines.graph import (
        Graph,
    )  # it brings Beam, which reading a file can do without

Place = tuple[str | int, ...]
"""Keys and positions that lead to a part of a job: ``("metrics", 0, "by")``."""

MOST_VALUES: Final = 100_000
"""In a file, with what its aliases repeat."""


_NOT_CHECKED: Final = "not checked: "


@dataclass(frozen=True, order=True)
class Problem:
    """What is wrong with a job, and where.

    >>> print(Problem("job.yaml", 7, "source.disorder", "a duration such as 10s is wanted"))
    job.yaml:7: source.disorder: a duration such as 10s is wanted
    """

    file: str
    line: int | None
    key: str
    text: str
    note: bool = False
    """Whether it says what could not be checked, rather than what is wrong."""

    def as_error(self) -> "Problem":
        """The same for who wants to run the job: what is not set is wrong then.

        >>> print(Problem("job.yaml", 2, "source", "not checked: ${KAFKA} is not set", True).as_error())
        job.yaml:2: source: ${KAFKA} is not set: export it
        """
        if not self.note:
            return self
        return replace(self, text=f"{self.text.removeprefix(_NOT_CHECKED)}: export it", note=False)

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(filter(None, (where, "note" if self.note else "", self.key, self.text)))


class JobFileError(ValueError):
    """A file that is no job: all its problems, one in each line of the message."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems)  # not the text: it has to survive pickling
        self.problems = problems

    def __str__(self) -> str:
        return "\n".join(map(str, self.problems))


@dataclass(frozen=True)
class Source:
    """The text a job was read from: its file's name, and the line of each part."""

    file: str
    lines: Mapping[Place, int] = field(default_factory=dict)

    def problem(self, place: Place, text: str, *, note: bool = False) -> Problem:
        """A problem at that place: at its line, or that of what would hold it."""
        held = place
        while held and held not in self.lines:
            held = held[:-1]
        return Problem(self.file, self.lines.get(held), ".".join(map(str, place)), text, note)


class JobFile(NamedTuple):
    """A job, and where it was read from."""

    job: Job
    source: Source


def load(path: Path) -> Job:
    """The job in a file. Raises ``JobFileError`` with all that keeps it from being one."""
    return read(path).job


def read(path: Path) -> JobFile:
    """As ``load``, with the lines of the job's parts, for ``check``."""
    try:
        text = path.read_bytes()
    except OSError as error:
        problem = Problem(str(path), None, "", f"can't be read: {error.strerror}")
        raise JobFileError([problem]) from error
    return parse(text, str(path))


def parse(text: bytes, file: str) -> JobFile:
    """A job of YAML in UTF-8; ``file`` is its name in errors.

    Plain text means what YAML 1.2's core schema says (https://yaml.org/spec/1.2.2/#103-core-schema):
    ``on``, ``yes``, ``12:30`` and ``2026-01-05`` are text.

    >>> parse(b"job: orders\\nsourc: {}", "orders.yaml")
    Traceback (most recent call last):
    velocity.pipelines.jobfile.JobFileError: orders.yaml:1: fields: required, but missing
    orders.yaml:1: sinks: required, but missing
    orders.yaml:1: dead_letters: required, but missing
    orders.yaml:2: sourc: unknown key; did you mean source?
    """
    reader = _Reader(file)
    data = reader.document(text)
    source = Source(file, reader.lines)
    problems = reader.problems
    if isinstance(data, dict):
        try:
            job = Job.model_validate(data)
        except ValidationError as error:
            problems += _explained(error, data, source)
    if problems:
        raise JobFileError(sorted(problems, key=lambda problem: problem.line or 0))
    return JobFile(job, source)


# -- YAML -----------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: Any = {}  # noqa: RUF012 (as the class it is derived from has it)


_TAG: Final = "tag:yaml.org,2002:"
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?((\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|\.(inf|Inf|INF))|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)

# What PyYAML says may quote the text: an alias or a tag may be a password that lacks its quotes.
_SYNTAX: Final = (
    ("found undefined alias", "no anchor has this alias's name; quote text that begins with *"),
    ("found duplicate anchor", "an anchor's name is given twice; quote text that begins with &"),
    ("found undefined tag handle", "this tag is unknown; quote text that begins with !"),
    ("found character '\\t'", "a tab can't indent; use blanks"),
    (
        "mapping values are not allowed",
        "no key is possible here; check the indentation, and quote text that holds a colon",
    ),
    ("could not find expected ':'", "a key has no colon"),
    ("expected <block end>", "this does not fit what is above; check the indentation"),
    ("expected ',' or", "a comma or bracket is missing; quote text that holds { } [ ] or ,"),
)


class _Reader:
    """From YAML to plain values, with the line of each and all problems on the way."""

    def __init__(self, file: str) -> None:
        self.problems: list[Problem] = []
        self.lines: dict[Place, int] = {}
        self._file = file
        self._values = 0

    def document(self, data: bytes) -> Any:
        """None if there is nothing to go on with."""
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            self._problem(data[: error.start].count(b"\n") + 1, "this is not UTF-8")
            return None
        try:
            loader = _Loader(text)
            node = loader.get_node() if loader.check_node() else None
            if node is not None and loader.check_node():
                line = loader.peek_event().start_mark.line + 1
                self._problem(line, "a second document begins here; a file holds one job")
        except yaml.reader.ReaderError as error:
            line = text[: error.position].count("\n") + 1
            self._problem(line, f"character U+{error.character:04X} can't be in YAML")
            return None
        except yaml.MarkedYAMLError as error:
            self._problem(*_syntax(error))
            return None
        if node is None or node.tag == f"{_TAG}null":
            self._problem(1, "the file is empty; a job is wanted")
            return None
        if not isinstance(node, yaml.MappingNode):
            self._problem(node.start_mark.line + 1, "a job is wanted: keys with values")
            return None
        self.lines[()] = node.start_mark.line + 1
        return self._value(node, (), ())

    def _problem(self, line: int, text: str, place: Place = ()) -> None:
        self.problems.append(Problem(self._file, line, ".".join(map(str, place)), text))

    def _value(self, node: yaml.Node, place: Place, holders: tuple[yaml.Node, ...]) -> Any:
        line = self.lines[place]
        self._values += 1
        if node in holders:
            self._problem(line, "an alias can't stand for what holds it", place)
        elif self._values > MOST_VALUES:
            if self._values == MOST_VALUES + 1:
                self._problem(line, f"more than {MOST_VALUES:,} values; write fewer aliases", place)
        elif isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, place, (*holders, node))
        elif isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            values = []
            for i, item in enumerate(node.value):
                self.lines[*place, i] = item.start_mark.line + 1
                values.append(self._value(item, (*place, i), (*holders, node)))
            return values
        elif isinstance(node, yaml.ScalarNode):
            try:
                return _SCALARS[node.tag.removeprefix(_TAG)](node.value)
            except (KeyError, ValueError):
                self._problem(line, "a value of this tag can't be; quote text with ! first", place)
        else:
            self._problem(line, "this tag is unknown", place)
        return None

    def _mapping(
        self, mapping: yaml.MappingNode, place: Place, holders: tuple[yaml.Node, ...]
    ) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, node in mapping.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self._problem(line, "a key is plain text, not a list or mapping", place)
                continue
            at = (*place, key.value)
            if key.value == "<<":
                self._problem(line, "merge keys are not of YAML 1.2; write out what they add", at)
            elif key.value in values:
                self._problem(line, f"given twice; first in line {self.lines[at]}", at)
            else:
                self.lines[at] = line
                values[key.value] = self._value(node, at, holders)
        return values


def _syntax(error: yaml.MarkedYAMLError) -> tuple[int, str]:
    problem = error.problem or "this is not YAML"
    mark = error.problem_mark
    if "end of stream" in problem or "stream end" in problem or "expected ':'" in problem:
        mark = error.context_mark or mark  # what is not ended began there
    words = next((words for begin, words in _SYNTAX if problem.startswith(begin)), problem)
    return (mark.line + 1 if mark else 1), words


def _int(text: str) -> int:
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


def _float(text: str) -> float:
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


_SCALARS: Final[Mapping[str, Callable[[str], Any]]] = {
    "str": str,
    "null": lambda _: None,
    "bool": lambda text: {"true": True, "false": False}[text.lower()],
    "int": _int,
    "float": _float,
}


# -- the model's errors in plain words ------------------------------------------------------------


def _explained(
    error: ValidationError, data: Mapping[str, Any], source: Source
) -> Iterator[Problem]:
    """One problem for each place; a key's misspelling is not told again as its absence."""
    at: dict[tuple[Place, bool], list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        place = _place(detail, data)
        at.setdefault((place, detail["loc"][-1:] == ("[key]",)), []).append(detail)
    meant = set()
    for (place, _), [detail, *_] in at.items():
        if detail["type"] == "extra_forbidden":
            *parent, key = place
            valid = _keys(parent)
            near = difflib.get_close_matches(str(key), valid, 1)
            meant |= {(*parent, name) for name in near if (*parent, name) not in source.lines}
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(valid)}"
            yield source.problem(place, f"unknown key; {hint}")
    for (place, is_key), details in at.items():
        type_ = details[0]["type"]
        if type_ != "extra_forbidden" and not (type_ == "missing" and place in meant):
            yield source.problem(place, ("its name: " if is_key else "") + _words(details))


def _place(detail: ErrorDetails, data: Any) -> Place:
    """Where the error is in the file; pydantic's own path has names of types in it too."""
    place: Place = detail.get("ctx", {}).get("place", ())
    if place:
        return place
    for item in detail["loc"]:
        inside = isinstance(data, dict) and item in data
        if not inside and not (isinstance(data, list) and isinstance(item, int)):
            if item == detail["loc"][-1]:
                return (*place, item) if detail["type"] == "missing" else place
            continue  # it names a type
        place, data = (*place, item), data[item]
    return place


def _keys(place: Sequence[str | int]) -> list[str]:
    """The keys that a mapping at that place of a job may have."""
    found: Any = Job
    for item in place:
        if isinstance(found, type) and issubclass(found, BaseModel):
            found = found.model_fields[str(item)].annotation
        else:  # a list or mapping of models
            found = get_args(found)[-1]
        if get_origin(found) in (Union, UnionType):
            parts = [getattr(part, "__origin__", part) for part in get_args(found)]
            models = [p for p in parts if isinstance(p, type) and issubclass(p, BaseModel)]
            found = [*models, *parts][0]
    return [field.alias or name for name, field in found.model_fields.items()]


_PATTERNS: Final = {
    NAME: "lower-case letters, digits and _ are wanted, a letter first",
    COLUMN: "letters, digits and _ are wanted, a letter first",
}
_WANTED: Final = {
    "string_type": "text",
    "decimal_type": "decimal(18, 2)",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "datetime_type": "a time such as 2026-01-05T00:00:00Z",
    "datetime_parsing": "a time such as 2026-01-05T00:00:00Z",
    "datetime_from_date_parsing": "a time such as 2026-01-05T00:00:00Z",
    "timezone_aware": "a time with its offset, such as 2026-01-05T00:00:00Z",
    "list_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
}
"""What is wanted where pydantic finds an error of this type."""


def _words(details: Sequence[ErrorDetails]) -> str:
    """What is wrong at one place: of a union pydantic has an error for each alternative.

    No value is repeated but that of an enumeration: any other may be a secret.
    """
    wanted: list[str] = []
    near = ""
    for detail in details:
        context = detail.get("ctx", {})
        if detail["type"] == "literal_error":
            choices = re.findall(r"'(\w+)'", context["expected"])
            wanted += choices
            found = difflib.get_close_matches(str(detail["input"]), choices, 1)
            if found and len(choices) > 1:
                near = f"; did you mean {found[0]}?"
        elif detail["type"] not in _WANTED:
            return _sentence(detail, context)
        elif (what := _WANTED[detail["type"]]) not in wanted:
            wanted.append(what)
    if "a number" in wanted and "a whole number" in wanted:
        wanted.remove("a whole number")
    *others, last = wanted
    text = f"{', '.join(others)} or {last} is wanted" if others else f"{last} is wanted"
    if text.startswith("keys with values"):
        text = "keys with values are wanted"
    given = details[0]["input"]
    if given is None:
        return f"no value; {text}"
    if wanted == ["text"] and isinstance(given, bool | int | float):
        return f"{text}; put it into quotes"
    return text + near


def _sentence(detail: ErrorDetails, context: Mapping[str, Any]) -> str:
    match detail["type"]:
        case "missing":
            return "required, but missing"
        case "value_error":
            return str(context["error"])
        case "duplicate_name":
            return f"the name {context['name']} is given twice"
        case "ambiguous_column":
            return f"differs from {context['first']} by case only, which SQL can't tell apart"
        case "corrected_in_data_stream":
            return (
                "a data stream takes no correction, which early, lateness and transactions bring: "
                "leave them out, or sinks.elasticsearch.data_stream"
            )
        case "string_pattern_mismatch":
            return _PATTERNS[context["pattern"]]
        case "too_short" | "string_too_short":
            return "empty; at least one is wanted"
        case "string_too_long":
            return f"{context['max_length']} characters at most are wanted"
        case "greater_than_equal":
            return f"{context['ge']} or more is wanted"
        case "less_than_equal":
            return f"{context['le']} or less is wanted"
    return detail["msg"]


# -- what only the graph knows --------------------------------------------------------------------


def check(job: Job, environment: Mapping[str, str], source: Source | None = None) -> list[Problem]:
    """What keeps the job's graph from being built, in the order of the file.

    Each part is built on its own, so that one that is wrong does not hide another; what stands on a
    part that is wrong is not checked. A part that needs a variable which ``environment`` does not
    have is a note. Nothing outside is reached, and no variable's value is shown.

    >>> from velocity.pipelines.reference import EXAMPLE
    >>> wrong = EXAMPLE.replace("sum(amount)", "sum(amonut)").replace("${KAFKA}", "127.0.0.1:9092")
    >>> job, source = parse(wrong.encode(), "job.yaml")
    >>> for problem in check(job, {"ELASTICSEARCH": "http://127.0.0.1:9200"}, source):
    ...     print(problem)
    job.yaml:14: note: enrich.0.get: not checked: ${PROVIDERS} is not set
    job.yaml:29: metrics.0.values.revenue: unknown column amonut; did you mean amount?
    """
    source = source or Source(job.job)
    problems: dict[Problem, None] = {}  # in order; parts that share what is wrong tell it once
    for part in _parts(job):
        for place, text, note in part.problems(environment):
            finer, rest = _finer(place, text)
            if finer in source.lines:
                place, text = finer, rest
            problems[source.problem(place, text, note=note)] = None
    return sorted(problems, key=lambda problem: problem.line or 0)


_KEYS: Final = {"hosts": "url"}
"""What a transform calls a key, and what a job calls it."""


def _finer(place: Place, text: str) -> tuple[Place, str]:
    """The place's own key that an error begins with, ``cache.ttl: …``, and the rest of it."""
    begin = re.match(r"([a-z_.]+)( '[^']*')?: ", text)
    keys = begin[1].split(".") if begin else ()
    return (*place, *(_KEYS.get(key, key) for key in keys)), text[begin.end() :] if begin else text


class _Part(NamedTuple):
    """A job cut down to the part that is built, and where that part is in the whole job."""

    job: Job
    build: Callable[["Graph"], object]
    place: Place = ()
    within: Place = ()
    """Where it is in the job cut down, if elsewhere."""

    def problems(self, environment: Mapping[str, str]) -> Iterator[tuple[Place, str, bool]]:
        from velocity.pipelines.graph import Graph, JobError, UnsetVariable

        known, unset = dict(environment), False
        while True:
            try:
                self.build(Graph(self.job, known))
            except UnsetVariable as error:
                # With its name in its place it shows what else is not set; what is wrong then is
                # the name's fault.
                unset = True
                known[error.variable] = error.variable
                text = f"{_NOT_CHECKED}${{{error.variable}}} is not set"
                yield self._place(error.place), text, True
                continue
            except JobError as error:
                if not unset:
                    place = self._place(error.place)
                    yield place, self._text(error.error, place, environment), False
            return

    def _place(self, place: Place) -> Place:
        if self.place and place[: len(self.within)] == self.within:
            return (*self.place, *place[len(self.within) :])
        return place

    def _text(self, text: str, place: Place, environment: Mapping[str, str]) -> str:
        """Without what the place says already, and without any variable's value."""
        for metric in self.job.metrics:
            text = re.sub(f"^metric {metric.name}[:,] ", "", text)
        for enrichment in self.job.enrich:
            text = text.removeprefix(f"{enrichment.name}: ")
        for key in place:
            text = text.removeprefix(f"{key}: ")
        values = {environment.get(name, ""): name for name in variables(self.job)}
        for value in sorted(filter(None, values), key=len, reverse=True):
            text = text.replace(value, f"${{{values[value]}}}")
        return text


def variables(job: Job) -> list[str]:
    """Names of the environment variables that a job refers to, sorted.

    >>> from velocity.pipelines.reference import EXAMPLE
    >>> variables(parse(EXAMPLE.encode(), "job.yaml").job)
    ['ELASTICSEARCH', 'KAFKA', 'PROVIDERS']
    """
    reaching = job.model_dump_json(
        include={
            "source",
            "enrich",
            "sensitive",
            "transactions",
            "sinks",
            "dead_letters",
            "archive",
        }
    )
    return sorted(set(VARIABLE.findall(reaching)))


def _parts(job: Job) -> Iterator[_Part]:
    yield _Part(job, lambda graph: graph.read())
    yield _Part(job, lambda graph: graph.deduplicate)
    yield _Part(job, lambda graph: graph.filter)
    for i, enrichment in enumerate(job.enrich):
        so_far = job.model_copy(update={"enrich": job.enrich[: i + 1]})
        yield _Part(so_far, lambda graph: graph.enriched_schema)
        alone = job.model_copy(update={"enrich": [enrichment]})
        yield _Part(alone, lambda graph: graph.enrichments, ("enrich", i), ("enrich", 0))
    yield _Part(job, lambda graph: graph.protect)
    for column, expression in job.derive.items():
        alone = job.model_copy(update={"derive": {column: expression}})
        yield _Part(alone, lambda graph: graph.derive, ("derive", column), ("derive",))
    yield _Part(job, lambda graph: graph.transactions)
    yield _Part(job, lambda graph: graph.alerts)
    for i, metric in enumerate(job.metrics):
        for place, cut in _cut(metric):
            alone = job.model_copy(update={"metrics": [cut]})
            at: Place = ("metrics", i, *place)
            yield _Part(alone, lambda graph: graph.metrics, at, ("metrics", 0))
    for name, sink in job.sinks.of_documents.items():
        others = dict.fromkeys(job.sinks.of_documents) | {"kafka": None}
        sinks = job.sinks.model_copy(update={**others, name: sink})
        alone = job.model_copy(update={"sinks": sinks})
        yield _Part(alone, lambda graph: graph.sinks)
    yield _Part(job, lambda graph: graph.publish)
    yield _Part(job, lambda graph: graph.dead_letters)
    yield _Part(job, lambda graph: graph.archives)


def _cut(metric: MetricSpec) -> Iterator[tuple[Place, MetricSpec]]:
    """The metric cut down to one of its parts at a time; what is cut off can't be wrong."""
    least: dict[str, Any] = {
        "where": None,
        "by": [],
        "window": WindowSpec(fixed=timedelta(minutes=1)),
        "emit": EmitSpec(),
        "id": None,
        "values": {"events": "count()"},
    }
    cut = partial(_updated, metric, least)
    yield ("window",), cut(window=metric.window)
    yield ("emit",), cut(emit=metric.emit)
    if metric.where is not None:
        yield ("where",), cut(where=metric.where)
    for i, column in enumerate(metric.by):
        yield ("by", i), cut(by=[column])
    if metric.id is not None:
        whole = {"id": metric.id, "by": metric.by, "window": metric.window}
        yield ("id",), cut(**whole)
    for name, value in metric.values.items():
        yield ("values", name), cut(values={name: value})


def _updated(metric: MetricSpec, least: Mapping[str, Any], **part: Any) -> MetricSpec:
    return metric.model_copy(update={**least, **part})
