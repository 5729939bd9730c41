"""Laws of job files: what is wrong is told, all of it, with its line, and no secret."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from velocity.pipelines.jobfile import (
    MOST_VALUES,
    JobFileError,
    Problem,
    Source,
    check,
    load,
    parse,
    variables,
)

JOB = """\
job: orders
source:
  kafka:
    bootstrap_servers: "${KAFKA}"
    topics: [orders]
  event_time: at
fields:
  at: timestamp
  city: string
  amount: int64
  ratio: double
enrich:
  - name: provider
    get: "${PROVIDERS}/providers?ids={keys}"
    key: city
    id: id
    add: {tier: tier}
derive:
  large: amount > 10
metrics:
  - name: by_city
    where: large
    by: [city]
    window: {fixed: 1m}
    emit: {early: 10s}
    values: {orders: count(), revenue: sum(amount)}
sinks:
  elasticsearch:
    url: "${ELASTICSEARCH}"
    index: orders-{window_start:%Y.%m}
dead_letters: {kafka: dead}
"""
ENVIRONMENT = {
    "KAFKA": "127.0.0.1:9092",
    "PROVIDERS": "http://127.0.0.1:8080",
    "ELASTICSEARCH": "http://127.0.0.1:9200",
}


def with_(old: str, new: str) -> str:
    assert JOB.count(old) == 1, old
    return JOB.replace(old, new)


def problems(text: str | bytes) -> list[str]:
    """Of a file that is no job."""
    with pytest.raises(JobFileError) as caught:
        parse(text.encode() if isinstance(text, str) else text, "j")
    return str(caught.value).splitlines()


def checked(text: str, environment: dict[str, str] = ENVIRONMENT) -> list[str]:
    """Of a job whose graph can't be built."""
    job, source = parse(text.encode(), "j")
    return [str(problem) for problem in check(job, environment, source)]


def test_a_job_that_is_right_has_no_problems() -> None:
    assert checked(JOB) == []


def test_an_id_of_its_own_that_may_be_anothers_is_refused() -> None:
    own = "    id: orders/{city}/{window_start}\n    values"
    two = (
        "sinks:\n  elasticsearch",
        "  - {name: again, window: {fixed: 1m}, id: 'ORDERS{window_start}'",
    )
    text = with_("    values", own).replace(
        two[0], two[1] + ", values: {n: count()}}\n" + two[0], 1
    )
    assert checked(text.replace("ORDERS", "again/")) == []
    assert problems(text.replace("ORDERS", "orders/")) == [
        (
            "j:26: metrics.0.id: might be the id of a document of again too: begin it with a word of its "
            "own, such as by_city/"
        )
    ]
    assert checked(text.replace("ORDERS", "again/").replace("/{window_start}\n", "\n")) == [
        (
            "j:26: metrics.0.id: {window_start} must be in it, or documents of several keys or windows "
            "would have one id"
        )
    ]


def test_all_problems_are_told_in_the_order_of_their_lines() -> None:
    text = with_("topics: [orders]", "topics: []").replace("int64", "number")
    assert problems(text + "sink: {}\n") == [
        "j:5: source.kafka.topics: empty; at least one is wanted",
        "j:10: fields.amount: string, int64, double, bool, timestamp, timestamp_ms or decimal(18, 2) is wanted",
        "j:32: sink: unknown key; did you mean sinks?",
    ]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("job: orders", "job: Orders", "1: job: lower-case letters, digits and _ are wanted"),
        ("job: orders", f"job: {'x' * 65}", "1: job: 64 characters at most are wanted"),
        ("  event_time: at", "  event_tme: at", "6: source.event_tme: unknown key; did you mean e"),
        ("  event_time: at", "", "2: source.event_time: required, but missing"),
        ("  event_time: at", "  event_time:", "6: source.event_time: no value; text is wanted"),
        ("  event_time: at", "  event_time: 7", "6: source.event_time: text is wanted; put it in"),
        ("  event_time: at", "  event_time: [at]", "6: source.event_time: text is wanted"),
        ("[orders]", "orders", "5: source.kafka.topics: a list is wanted"),
        (
            "[orders]",
            "[o]\n    start: lates",
            "6: source.kafka.start: earliest, latest, committed, a time such as 2026-01-05T00:00:00Z or k",
        ),
        (
            "[orders]",
            "[o]\n    start: 2026-01-05T00:00:00",
            "6: source.kafka.start: earliest, latest, committed, a time with its offset, such as",
        ),
        (
            "[orders]",
            "[o]\n    options: {linger.ms: [5]}",
            "6: source.kafka.options.linger.ms: text, a number or true or false is wanted",
        ),
        ("city: string", "ci-ty: string", "9: fields.ci-ty: its name: letters, digits and _"),
        ("city: string", "city: {typ: string}", "9: fields.city.typ: unknown key; did you mean t"),
        ("city: string", "city: 5", "9: fields.city: keys with values are wanted"),
        ("city: string", "city: {type: string, required: 7}", "9: fields.city.required: true or"),
        ("id: id", "max_keys: 0", "16: enrich.0.max_keys: 1 or more is wanted"),
        ("id: id", "retries: 101", "16: enrich.0.retries: 100 or less is wanted"),
        ("id: id", "retries: 1.5", "16: enrich.0.retries: a whole number is wanted"),
        ("id: id", "retries: .inf", "16: enrich.0.retries: a"),
        ("id: id", f"retries: {'9' * 5000}", "16: enrich.0.retries: a"),
        ("id: id", "cache: {tll: 1s}", "16: enrich.0.cache.tll: unknown key; did you mean ttl?"),
        ("id: id", "cache: 1s", "16: enrich.0.cache: keys with values are wanted"),
        ("{tier: tier}", "{tier: {path: t, typ: s}}", "17: enrich.0.add.tier.typ: unknown key"),
        ("{early: 10s}", "{early: 10}", "25: metrics.0.emit.early: a duration such as 10s"),
        ("{fixed: 1m}", "{fixd: 1m}", "24: metrics.0.window.fixd: unknown key; did you mean fixed"),
        (
            "{fixed: 1m}",
            "{globl: true}",
            "24: metrics.0.window.globl: unknown key; did you mean global",
        ),
        ("{fixed: 1m}", "{global: false}", "24: metrics.0.window: give exactly one of fixed"),
        ("{fixed: 1m}", "{global: true, fixed: 1m}", "24: metrics.0.window: give exactly one of"),
        (
            "{fixed: 1m}\n    emit: {early: 10s}",
            "{global: true}",
            "24: metrics.0.window: a global window never ends: say by emit.early how often",
        ),
        (
            "{fixed: 1m}\n    emit: {early: 10s}",
            "{global: true}\n    emit: {early: 10s, lateness: 1s}",
            "25: metrics.0.emit: nothing is late for a global window: leave lateness out",
        ),
        ("{fixed: 1m}", "{fixed: 1m}\n    id: ''", "25: metrics.0.id: empty; at least one is"),
        ("{fixed: 1m}", "1m", "24: metrics.0.window: keys with values are wanted"),
        ("large\n", "''\n", "22: metrics.0.where: empty; at least one is wanted"),
        ("where: large", "zzz: large", "22: metrics.0.zzz: unknown key; there are: name, descr"),
        ("{kafka: dead}", "{}", "31: dead_letters: give exactly one of kafka and parquet"),
    ],
)
def test_a_problem_is_told_in_plain_words(old: str, new: str, problem: str) -> None:
    found = problems(with_(old, new))
    assert any(line.startswith(f"j:{problem}") for line in found), found


@pytest.mark.parametrize("wrong", ["5", "[5]", "{x: 5}", "null", "true", "text", ".nan", "[]"])
def test_no_word_of_pydantic_shows(wrong: str) -> None:
    """Whatever stands at each line's key in place of what belongs there."""
    jargon = ("valid", "Input", "instance", "literal", "str", "dict", "extra", "type=", "NoneType")
    lines = JOB.splitlines()
    for i, line in enumerate(lines):
        key, colon, _ = line.partition(": ")
        if not colon:
            continue
        text = "\n".join([*lines[:i], f"{key}: {wrong}", *lines[i + 1 :]])
        try:
            parse(text.encode(), "j")
        except JobFileError as error:
            for problem in error.problems:
                words = problem.text.replace("string, int64", "")
                assert not any(word in words for word in jargon), problem


def test_a_misspelt_key_is_not_told_as_missing_too() -> None:
    assert problems(with_("event_time: at", "event_tme: at")) == [
        "j:6: source.event_tme: unknown key; did you mean event_time?"
    ]


def test_a_name_given_twice_is_told_at_the_second() -> None:
    more = "  - {name: by_city, window: {session: 1m}, values: {n: count()}}\nsinks:\n"
    assert problems(with_("sinks:\n", more)) == [
        "j:27: metrics.1.name: the name by_city is given twice"
    ]


def test_a_key_given_twice_is_told_at_the_second() -> None:
    assert problems(with_("derive:\n", "derive:\n  large: amount > 5\n")) == [
        "j:20: derive.large: given twice; first in line 19"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "j:1: the file is empty"),
        ("# nothing\n", "j:1: the file is empty"),
        ("---\n...\n", "j:1: the file is empty"),
        ("- a\n", "j:1: a job is wanted: keys with values"),
        ("just text", "j:1: a job is wanted"),
        ("a: 1\n---\nb: 2\n", "j:2: a second document begins here"),
        ("a:\n\tb: 1\n", "j:2: a tab can't indent"),
        ("a: b: c\n", "j:1: no key is possible here"),
        ('a: 1\nb: "never ends\nc: 3\n', "j:2: found unexpected end of stream"),
        ("a: 1\nb: {c: ${X}}\n", "j:2: a comma or bracket is missing; quote text"),
        ("a: 1\nb: [1, 2\n", "j:2: a comma or bracket is missing"),
        ("a: 1\n  b: 2\n", "j:2: no key is possible here"),
        ("a: 1\nb\nc: 1\n", "j:2: a key has no colon"),
        ("a: [1]\n ]\n", "j:2: this does not fit what is above"),
        ("a: 1\nb: @x\n", "j:2: found character '@'"),
        ("a: \x07", "j:1: character U+0007 can't be in YAML"),
        ("? [a]\n: 1\n", "j:1: a key is plain text"),
        ("a: 1\na: 2\n", "j:2: a: given twice; first in line 1"),
        ("<<: {a: 1}\n", "j:1: <<: merge keys are not of YAML 1.2"),
        ("a: &x [*x]\n", "j:1: a.0: an alias can't stand for what holds it"),
        ("a: !!int x\n", "j:1: a: a value of this tag can't be"),
        ("a: !!set {x}\n", "j:1: a: this tag is unknown"),
    ],
    ids=repr,
)
def test_what_is_no_yaml_of_a_job_is_told_with_its_line(text: str, problem: str) -> None:
    found = problems(text)
    assert any(line.startswith(problem) for line in found), found


def test_what_is_not_utf8_is_told_with_its_line() -> None:
    assert problems(b"job: a\nsource: \xff\n") == ["j:2: this is not UTF-8"]


def test_aliases_can_not_make_a_small_file_huge() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for i in range(1, 9):
        text += f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n"
    assert any(f"more than {MOST_VALUES:,} values" in line for line in problems(text))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="can't be read: No such file or directory"):
        load(tmp_path / "none.yaml")


def test_an_anchor_serves_twice() -> None:
    text = with_("window: {fixed: 1m}", "window: &minute {fixed: 1m}").replace(
        "sinks:\n", "  - {name: other, window: *minute, values: {n: count()}}\nsinks:\n"
    )
    job = parse(text.encode(), "j").job
    assert job.metrics[0].window == job.metrics[1].window


@pytest.mark.parametrize(
    "text", ["on", "off", "yes", "no", "y", "n", "12:30", "1_000", "2026-01-05"]
)
def test_plain_text_is_read_as_yaml_1_2_reads_it(text: str) -> None:
    """YAML 1.1 makes a truth value, 750 minutes, a number and a date of these."""
    job = parse(with_("job: orders", f"job: orders\ndescription: {text}").encode(), "j").job
    assert job.description == text
    keyed = with_("city: string", f"{text}: string")
    if text.isalpha():
        assert text in parse(keyed.encode(), "j").job.fields
    else:
        assert any(f"fields.{text}: its name:" in line for line in problems(keyed))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("17", 17),
        ("-5", -5),
        ("0o17", 15),
        ("0x1F", 31),
        ("017", 17),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("true", True),
        ("FALSE", False),
        ("'17'", "17"),
        ("!!str 17", "17"),
    ],
)
def test_a_scalar_is_what_the_core_schema_makes_of_it(text: str, value: object) -> None:
    job = parse(with_("[orders]", f"[o]\n    options: {{x: {text}}}").encode(), "j").job
    found = job.source.kafka.options["x"]
    assert (found, type(found)) == (value, type(value))


def test_a_byte_order_mark_and_crlf_do_no_harm() -> None:
    windows = ("\ufeff" + JOB.replace("\n", "\r\n")).encode()
    assert parse(windows, "j").job == parse(JOB.encode(), "j").job


@given(st.text(max_size=40))
def test_no_text_is_more_than_a_job_file_error(text: str) -> None:
    with pytest.raises(JobFileError):
        parse(text.encode("utf-8", "surrogatepass"), "j")


@given(st.integers(0, len(JOB) - 1), st.text("{}[]:*&!|>'\"%@`#,- \t\n?$a1", max_size=3))
def test_no_slip_of_the_finger_is_more_than_a_job_file_error(at: int, slip: str) -> None:
    try:
        parse((JOB[:at] + slip + JOB[at + 1 :]).encode(), "j")
    except JobFileError as error:
        assert all(problem.line for problem in error.problems)


SECRET = "hunter2"


@pytest.mark.parametrize(
    "value",
    [SECRET, f"[{SECRET}]", f"*{SECRET}", f"!{SECRET} x", f"!{SECRET}!x y",
     f"&{SECRET} &{SECRET} x", f'"{SECRET}', f"%{SECRET}", f"|{SECRET}", f"x: {SECRET}",
     f"{{a: {SECRET}}}", f"@{SECRET}", f"- {SECRET}", f"!!int {SECRET}"],
)  # fmt: skip
@pytest.mark.parametrize("key", ["password", "api_key", "username"])
def test_no_error_repeats_a_secret(key: str, value: str) -> None:
    text = with_("    url:", f"    {key}: {value}\n    url:")
    text = text.replace("int64", "integer")  # so that there always is an error
    assert not any(SECRET in line for line in problems(text))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("event_time: at", "event_time: then", "6: source.event_time: event_time 'then' is none"),
        ("event_time: at", "event_time: city", "6: source.event_time: event_time 'city' must be"),
        ("derive:", "filter: amonut > 1\nderive:", "18: filter: unknown column amonut; did you m"),
        ("derive:", "filter: amount\nderive:", "18: filter: a condition is wanted"),
        ("derive:", "filter: tier = 'x'\nderive:", "18: filter: unknown column tier"),
        ("amount > 10", "amount >", "19: derive.large: syntax error"),
        ("amount > 10", "nosuch(amount)", "19: derive.large: "),
        ("amount > 10", "city > 3", "19: derive.large: "),
        ("large: amount", "city: amount", "19: derive.city: column city is there already"),
        ("key: city", "key: cty", "15: enrich.0.key: the rows have no column 'cty'"),
        ("{tier: tier}", "{city: city}", "17: enrich.0.add: 'city' is the key; choose another"),
        ("{tier: tier}", "{at: at}", "17: enrich.0.add: the rows have a column 'at' already"),
        ("?ids={keys}", "", "14: enrich.0.get: write {keys} once, where the keys go"),
        (
            "id: id",
            "id: id\n    cache: {ttl: 1s}\n    timeouts: {read: 0s}",
            "18: enrich.0.timeouts.",
        ),
        ("where: large", "where: amount", "22: metrics.0.where: a condition is wanted; amount is"),
        ("where: large", "where: larg", "22: metrics.0.where: unknown column larg; did you mean l"),
        ("by: [city]", "by: [city, town]", "23: metrics.0.by.1: unknown column town"),
        ("by: [city]", "by: [ratio]", "23: metrics.0.by.0: ratio is a double, which makes no key"),
        ("{fixed: 1m}", "{fixed: 0s}", "24: metrics.0.window"),
        ("early: 10s", "early: 1500ms", "25: metrics.0.emit.early: whole seconds"),
        ("sum(amount)", "total(amount)", "26: metrics.0.values.revenue: unknown aggregate total"),
        ("sum(amount)", "sum(city)", "26: metrics.0.values.revenue: sum(city) needs numbers"),
        ("sum(amount)", "sum(amonut)", "26: metrics.0.values.revenue: unknown column amonut; did"),
        ("orders-{", "Orders-{", "30: sinks.elasticsearch.index: use lower case"),
        ('"${ELASTICSEARCH}"', "127.0.0.1:9200", "29: sinks.elasticsearch.url: each is a URL"),
    ],
)
def test_what_the_graph_can_not_be_built_of_is_told(old: str, new: str, problem: str) -> None:
    found = checked(with_(old, new))
    assert any(line.startswith(f"j:{problem}") for line in found), found


def test_one_part_that_is_wrong_does_not_hide_another() -> None:
    text = with_("values: {orders: count(), ", "values: {orders: cnt(), ")
    text = text.replace("where: large", "where: amount").replace("sum(amount)", "sum(city)")
    text = text.replace("by: [city]", "by: [town]").replace("?ids={keys}", "")
    found = [line.split(": ")[1] for line in checked(text)]
    assert found == [
        "enrich.0.get",
        "metrics.0.where",
        "metrics.0.by.0",
        "metrics.0.values.orders",
        "metrics.0.values.revenue",
    ]


def test_what_many_parts_stand_on_is_told_once() -> None:
    assert len(checked(with_("event_time: at", "event_time: then"))) == 1


def test_a_variable_that_is_not_set_is_a_note_for_each_place() -> None:
    text = with_("[orders]", '[orders, "${MORE}", "${AND_MORE}"]')
    assert checked(text, {}) == [
        "j:4: note: source.kafka.bootstrap_servers: not checked: ${KAFKA} is not set",
        "j:5: note: source.kafka.topics: not checked: ${MORE} is not set",
        "j:5: note: source.kafka.topics: not checked: ${AND_MORE} is not set",
        "j:14: note: enrich.0.get: not checked: ${PROVIDERS} is not set",
        "j:29: note: sinks.elasticsearch.url: not checked: ${ELASTICSEARCH} is not set",
    ]


def test_what_needs_no_variable_is_checked_without_them() -> None:
    found = checked(with_("sum(amount)", "sum(city)"), {})
    assert (
        "j:26: metrics.0.values.revenue: sum(city) needs numbers; city is of type string" in found
    )


def test_no_problem_shows_what_a_variable_holds() -> None:
    text = with_("orders-{window_start:%Y.%m}", '"${INDEX}"')
    secret = "Secret/Index"
    [problem] = check(parse(text.encode(), "j").job, ENVIRONMENT | {"INDEX": secret})
    assert "${INDEX}" in problem.text
    assert secret not in problem.text


def test_variables_are_those_of_the_parts_that_reach_outside() -> None:
    job = parse(with_("amount > 10", "city = '${CITY}'").encode(), "j").job
    assert variables(job) == ["ELASTICSEARCH", "KAFKA", "PROVIDERS"]


def test_without_lines_a_problem_still_has_its_key() -> None:
    job = parse(with_("sum(amount)", "sum(city)").encode(), "j").job
    [problem] = check(job, ENVIRONMENT)
    assert (problem.file, problem.line) == ("orders", None)
    assert problem.key == "metrics.0.values.revenue"


def test_a_problem_of_what_is_not_there_has_the_line_of_what_would_hold_it() -> None:
    source = Source("j", {(): 1, ("a",): 7})
    assert source.problem(("a", "b", 0), "wrong") == Problem("j", 7, "a.b.0", "wrong")


def test_an_error_survives_pickling() -> None:
    error = JobFileError([Problem("j", 1, "a", "wrong")])
    assert pickle.loads(pickle.dumps(error)).problems == error.problems
    assert str(pickle.loads(pickle.dumps(error))) == "j:1: a: wrong"


def test_columns_that_differ_by_case_only_are_told_with_their_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    text = Path("pipelines/pharmacy_delivery.yaml").read_text().replace("is_late:", "Amount:")
    file.write_text(text)
    with pytest.raises(JobFileError) as error:
        load(file)
    [problem] = error.value.problems
    assert problem.line == text[: text.index("Amount:")].count("\n") + 1
    assert "differs from amount by case only" in problem.text
