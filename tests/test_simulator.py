"""Laws of the simulated stream, and of its way to a broker."""

import json
import signal
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.records import Cause, rfc3339
from velocity.pipelines.directory import directory
from velocity.pipelines.disturbances import Outage, Peak, outage_of, peak_of
from velocity.pipelines.domains import DOMAIN_OF, DOMAINS, LIFE_CYCLES, fields_of
from velocity.pipelines.payloads import stamp
from velocity.pipelines.simulator import Kind, Scenario, SimulatedMessage, simulate
from velocity.pipelines.transactions import World
from velocity.runners.embedded import EmbeddedKafka
from velocity.runners.produce import DeliveryError, Produced, produce, produce_by

PYTHON_TYPES = {"string": str, "timestamp": str, "int64": int, "double": float, "bool": bool}
SCENARIO = Scenario(seed=3, events=60_000, rate=20)  # 50 minutes


@pytest.fixture(scope="module")
def messages() -> list[SimulatedMessage]:
    return list(simulate(SCENARIO))


@pytest.fixture(scope="module")
def events(messages: list[SimulatedMessage]) -> list[dict[str, Any]]:
    return [json.loads(m.value) for m in messages if m.kind in (Kind.NORMAL, Kind.LATE)]


def epoch_ms(time: str) -> int:
    return round(datetime.fromisoformat(time).timestamp() * 1000)


def of_kind(messages: Iterable[SimulatedMessage], kind: Kind) -> list[SimulatedMessage]:
    return [message for message in messages if message.kind is kind]


def test_the_same_scenario_gives_the_same_bytes() -> None:
    scenario = Scenario(seed=5, events=2_000)
    assert list(simulate(scenario)) == list(simulate(scenario))


def test_what_happens_after_the_last_event_is_not_kept_and_changes_nothing() -> None:
    asked: dict[str, Any] = {
        "seed": 1, "start": SCENARIO.start, "rate": 500.0, "events": 2_000, "domains": [*DOMAINS],
        "unknown_share": 0.0,
    }  # fmt: skip
    start = int(SCENARIO.start.timestamp())
    steady, other = World(**asked, steady=True), World(**asked)
    for second in range(start, start + 5):
        found, kept = (
            [
                (transaction.id, transaction.times[step])
                for transaction, step in world.happening(second)
            ]
            for world in (steady, other)
        )
        assert found == kept
    assert other.happening(start + 60)
    assert not steady.happening(start + 60)


def test_another_seed_gives_other_bytes() -> None:
    one, other = (list(simulate(Scenario(seed=seed, events=100))) for seed in (1, 2))
    assert not {m.value for m in one} & {m.value for m in other}


@pytest.mark.parametrize("n", [0, 1, 999])
def test_a_scenario_has_exactly_its_number_of_messages(n: int) -> None:
    assert len(list(simulate(Scenario(events=n)))) == n


def test_messages_come_in_the_order_of_their_publication(messages: list[SimulatedMessage]) -> None:
    times = [message.timestamp_ms for message in messages]
    assert times == sorted(times)


def test_an_event_is_written_as_json_dumps_would(
    messages: list[SimulatedMessage],
) -> None:
    for message in messages:
        if message.kind is not Kind.MALFORMED:
            event = json.loads(message.value)
            assert json.dumps(event, separators=(",", ":")).encode() == message.value


def test_an_event_has_the_dictionarys_fields_and_types(events: list[dict[str, Any]]) -> None:
    for event in events:
        fields = fields_of(event["event_type"])
        assert list(event) == [field.name for field in fields]
        for field in fields:
            value = event[field.name]
            assert type(value) is PYTHON_TYPES[field.type], (field.name, value)
            assert not field.values or value in field.values, (field.name, value)


def test_every_event_type_happens(events: list[dict[str, Any]]) -> None:
    assert {event["event_type"] for event in events} == set(DOMAIN_OF)


def test_a_message_goes_to_its_domains_topic_under_its_transactions_key(
    messages: list[SimulatedMessage],
) -> None:
    for message in messages:
        if message.kind is not Kind.MALFORMED:
            event = json.loads(message.value)
            assert message.topic == DOMAINS[event["domain"]].topic
            assert message.key == event["transaction_id"].encode()


def test_an_event_has_an_id_of_its_own(events: list[dict[str, Any]]) -> None:
    assert len({event["event_id"] for event in events}) == len(events)


def test_the_shares_are_those_asked_for(messages: list[SimulatedMessage]) -> None:
    kinds = Counter(message.kind for message in messages)
    assert kinds[Kind.LATE] / SCENARIO.events == pytest.approx(0.05, rel=0.1)
    assert kinds[Kind.DUPLICATE] / SCENARIO.events == pytest.approx(0.005, rel=0.25)
    assert kinds[Kind.MALFORMED] / SCENARIO.events == pytest.approx(0.001, rel=0.5)


def test_late_is_a_second_or_more_and_never_beyond_the_maximum(
    messages: list[SimulatedMessage],
) -> None:
    for message in messages:
        if message.kind in (Kind.NORMAL, Kind.LATE):
            lag = message.timestamp_ms - epoch_ms(json.loads(message.value)["event_time"])
            assert (1000 <= lag <= 20_000) if message.kind is Kind.LATE else (0 <= lag < 1000)


def test_a_duplicate_is_a_normal_message_again(messages: list[SimulatedMessage]) -> None:
    before = {(m.topic, m.key, m.value): m for m in of_kind(messages, Kind.NORMAL)}
    for duplicate in of_kind(messages, Kind.DUPLICATE):
        assert before[duplicate[:3]].timestamp_ms < duplicate.timestamp_ms


def cause_of(value: bytes) -> Cause:
    """What is wrong with a message, found with the standard library alone."""
    if not value:
        return Cause.EMPTY
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        return Cause.NOT_UTF8
    try:
        event, end = json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError:
        return Cause.INVALID_JSON
    if end < len(text):
        return Cause.SEVERAL_DOCUMENTS
    if not isinstance(event, dict):
        return Cause.NOT_AN_OBJECT
    if "event_time" not in event:
        return Cause.MISSING_FIELD
    try:
        time = datetime.fromisoformat(event["event_time"])
    except ValueError:
        return Cause.WRONG_TYPE
    assert time > datetime(2090, 1, 1, tzinfo=UTC)
    return Cause.FUTURE_EVENT_TIME


def test_a_malformed_message_is_wrong_in_the_way_it_says() -> None:
    spoiled = list(simulate(Scenario(events=500, late_share=0, duplicate_share=0,
                                     malformed_share=1)))  # fmt: skip
    assert {m.kind for m in spoiled} == {Kind.MALFORMED}
    assert [m.cause for m in spoiled] == [cause_of(m.value) for m in spoiled]
    assert {m.cause for m in spoiled} == {
        Cause.EMPTY, Cause.NOT_UTF8, Cause.INVALID_JSON, Cause.NOT_AN_OBJECT, Cause.WRONG_TYPE,
        Cause.SEVERAL_DOCUMENTS, Cause.MISSING_FIELD, Cause.FUTURE_EVENT_TIME,
    }  # fmt: skip


def test_only_a_malformed_message_has_a_cause(messages: list[SimulatedMessage]) -> None:
    assert all((m.cause is not None) == (m.kind is Kind.MALFORMED) for m in messages)


def test_faults_change_no_event_but_the_malformed() -> None:
    faulty = Scenario(events=3_000, rate=20)
    clean = Scenario(events=3_000, rate=20, late_share=0, duplicate_share=0, malformed_share=0)
    truth = {m.value: m for m in simulate(clean)}
    end = max(m.timestamp_ms for m in truth.values())
    kept = [m for m in simulate(faulty) if m.kind in (Kind.NORMAL, Kind.LATE)]
    # The last seconds are cut elsewhere, because 3,000 messages are not 3,000 events.
    within = [m for m in kept if m.timestamp_ms < end - 1000]
    assert len(within) > 2_500
    assert {m.value for m in within} <= set(truth)


def test_a_transaction_is_a_stretch_of_a_life_cycle(events: list[dict[str, Any]]) -> None:
    transactions = defaultdict(list)
    for event in sorted(events, key=lambda event: event["event_time"]):
        transactions[event["transaction_id"]].append(event["event_type"])
    clean = 0
    for steps in transactions.values():
        # Malformed events and the ends of the stream leave gaps, but never another order.
        assert any(_in_order(steps, cycle.events) for cycle in LIFE_CYCLES), steps
        clean += any("".join(steps) in "".join(cycle.events) for cycle in LIFE_CYCLES)
    assert clean / len(transactions) > 0.95


def _in_order(steps: list[str], events: tuple[str, ...]) -> bool:
    remaining = iter(events)
    return all(step in remaining for step in steps)


def test_a_transaction_spans_domains_and_stays_with_its_patient(
    events: list[dict[str, Any]],
) -> None:
    spans, patients = defaultdict(set), defaultdict(set)
    for event in events:
        spans[event["transaction_id"]].add(event["domain"])
        patients[event["transaction_id"]].add(event["patient_id"])
    assert max(len(domains) for domains in spans.values()) == 3
    assert all(len(ids) == 1 for ids in patients.values())


def test_a_delivery_takes_as_long_as_its_events_are_apart(events: list[dict[str, Any]]) -> None:
    created = {e["transaction_id"]: e for e in events if e["event_type"] == "order.created"}
    pairs = [
        (created[e["transaction_id"]], e)
        for e in events
        if e["event_type"] == "order.delivered" and e["transaction_id"] in created
    ]
    assert pairs
    for order, delivery in pairs:
        apart = epoch_ms(delivery["event_time"]) - epoch_ms(order["event_time"])
        assert delivery["delivery_minutes"] == pytest.approx(apart / 60_000, abs=0.07)
        assert delivery["amount"] == order["amount"]


def test_the_stream_starts_in_full_swing(events: list[dict[str, Any]]) -> None:
    """Without the transactions begun before the start, no order would arrive for 20 minutes."""
    begin = epoch_ms("2026-01-05T00:00:00.000Z")
    parts = Counter(
        (epoch_ms(event["event_time"]) - begin) // 300_000
        for event in events
        if event["event_type"] == "order.delivered"
    )
    whole = [n for _, n in sorted(parts.items())][:-1]
    assert len(whole) >= 8
    assert all(n == pytest.approx(sum(whole) / len(whole), rel=0.2) for n in whole)


@pytest.mark.parametrize("ms", [0, 1, 999])
def test_nothing_happens_before_the_start_not_even_within_its_second(ms: int) -> None:
    start = datetime(2026, 1, 5, tzinfo=UTC) + timedelta(milliseconds=ms)
    messages = simulate(Scenario(events=2_000, rate=2_000, start=start, malformed_share=0))
    first = min(json.loads(message.value)["event_time"] for message in messages)
    assert stamp(epoch_ms(start.isoformat())) <= first


def test_the_rate_is_that_of_event_time_and_follows_the_day() -> None:
    def seconds(start: datetime) -> float:
        times = [m.timestamp_ms for m in simulate(Scenario(events=20_000, start=start))]
        return (times[-1] - times[0]) / 1000

    morning, night = datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 5, 20, tzinfo=UTC)
    assert seconds(morning) == pytest.approx(200, rel=0.05)
    assert seconds(night) > 3 * seconds(morning)


def test_a_share_of_ids_is_unknown_to_the_directory() -> None:
    known = directory(1)
    ids = [
        (e["provider_id"] in known.providers, e["patient_id"] in known.patients)
        for m in simulate(Scenario(events=20_000, malformed_share=0, unknown_share=0.1))
        for e in [json.loads(m.value)]
    ]
    assert sum(not provider for provider, _ in ids) / len(ids) == pytest.approx(0.1, rel=0.15)
    assert sum(not patient for _, patient in ids) / len(ids) == pytest.approx(0.1, rel=0.15)


def test_without_an_unknown_share_the_directory_knows_all() -> None:
    known = directory(1)
    kinds = {domain.name: domain.provider for domain in DOMAINS.values()}
    for m in simulate(Scenario(events=5_000, malformed_share=0, unknown_share=0)):
        event = json.loads(m.value)
        assert known.providers[event["provider_id"]].kind == kinds[event["domain"]]
        patient = known.patients[event["patient_id"]]
        assert patient.insured or event["domain"] != "insurance"


def test_some_providers_are_far_busier_than_others(events: list[dict[str, Any]]) -> None:
    doctors = Counter(e["provider_id"] for e in events if e["domain"] == "tele_consultation")
    counts = [n for _, n in doctors.most_common()]
    assert counts[0] > 10 * counts[len(counts) // 2]


def test_a_scenario_keeps_to_its_domains_at_the_same_rate() -> None:
    scenario = Scenario(events=20_000, domains=("insurance", "appointment"))
    messages = list(simulate(scenario))
    assert {m.topic for m in messages} == {"insurance.events", "appointment.events"}
    seconds = (messages[-1].timestamp_ms - messages[0].timestamp_ms) / 1000
    assert seconds == pytest.approx(200, rel=0.1)


def test_the_directory_follows_from_the_seed() -> None:
    directory.cache_clear()
    one = directory(4)
    directory.cache_clear()
    assert directory(4) == one
    assert directory(5) != one
    assert (len(one.providers), len(one.patients)) == (500, 20_000)


def test_the_directory_is_served_by_id() -> None:
    tables = directory(4).tables()
    assert set(tables["providers"]["PRV-00001"]) == {"id", "name", "city", "tier", "kind"}
    assert set(tables["patients"]["PAT-0000001"]) == {"id", "age_group", "city", "insured"}
    assert all(row["id"] == key for rows in tables.values() for key, row in rows.items())


@given(st.integers(min_value=0, max_value=4_102_444_800_000))
def test_the_quick_time_stamp_is_the_exact_one(millis: int) -> None:
    assert stamp(millis) == rfc3339(millis)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("events", -1),
        ("start", datetime(2026, 1, 5)),
        ("rate", float("nan")),
        ("max_lateness", timedelta(seconds=1)),
        ("late_share", 1.5),
        ("duplicate_share", -0.1),
        ("malformed_share", 0.96),
        ("domains", ("pharmacy",)),
        ("domains", ()),
    ],
)
def test_a_scenario_that_makes_no_sense_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key):
        Scenario(**{key: value})


def consumed(servers: str, topics: Iterable[str]) -> list[Message]:
    """All messages of the topics, partition by partition."""
    settings = {"bootstrap.servers": servers, "group.id": "test", "enable.auto.commit": False}
    found: list[Message] = []
    with closing(Consumer(settings)) as consumer:
        partitions = [
            TopicPartition(topic, partition, 0)
            for topic in topics
            for partition in consumer.list_topics(topic, 10).topics[topic].partitions
        ]
        marks = [consumer.get_watermark_offsets(at, 10) for at in partitions]
        consumer.assign(partitions)
        while len(found) < sum(high - low for low, high in marks):
            found += [m for m in consumer.consume(1000, 0.1) if m.error() is None]
    return sorted(found, key=lambda m: (m.topic(), m.partition(), m.offset()))


@pytest.mark.embedded
def test_a_broker_gets_the_simulated_messages_in_order_and_by_key() -> None:
    scenario = Scenario(events=3_000, malformed_share=0.05)
    topics = {f"test.{domain.topic}": 3 for domain in DOMAINS.values()}
    with EmbeddedKafka(topics) as kafka:
        assert produce(scenario, kafka.bootstrap_servers, topics_prefix="test.") == Produced(
            3_000, interrupted=False
        )
        found = consumed(kafka.bootstrap_servers, topics)
    assert Counter((m.topic(), m.key(), m.value(), m.timestamp()[1]) for m in found) == Counter(
        (f"test.{m.topic}", m.key, m.value, m.timestamp_ms) for m in simulate(scenario)
    )
    home: dict[tuple[Any, Any], Any] = {}
    for one, other in pairwise(found):
        assert home.setdefault((one.topic(), one.key()), one.partition()) == one.partition()
        if (one.topic(), one.partition()) == (other.topic(), other.partition()):
            assert one.timestamp()[1] <= other.timestamp()[1]


class Clock:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.embedded
def test_a_rate_spreads_the_messages_over_the_wall_clock() -> None:
    clock, steps = Clock(), []
    with EmbeddedKafka() as kafka:
        produce(
            Scenario(events=50),
            kafka.bootstrap_servers,
            rate=10,
            progress=lambda sent: steps.append((sent, round(clock.now - 1000, 6))),
            clock=clock.time,
            sleep=clock.sleep,
        )
    assert steps == [(n, (n - 1) / 10) for n in range(1, 51)]


@pytest.mark.embedded
def test_an_interrupt_ends_the_sending_and_what_was_sent_is_delivered() -> None:
    def interrupt(sent: int) -> None:
        if sent == 2000:
            signal.raise_signal(signal.SIGINT)

    with EmbeddedKafka() as kafka:
        produced = produce(Scenario(events=5_000), kafka.bootstrap_servers, progress=interrupt)
        found = consumed(kafka.bootstrap_servers, [d.topic for d in DOMAINS.values()])
    assert produced == Produced(2000, interrupted=True)
    assert len(found) == 2000


@pytest.mark.embedded
def test_a_broker_that_does_not_answer_is_an_error() -> None:
    with EmbeddedKafka() as kafka:
        gone = kafka.bootstrap_servers
    with pytest.raises(DeliveryError, match="events"):
        produce(Scenario(events=10), gone, timeout=0.5)


def test_a_rate_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="rate"):
        produce(Scenario(), "127.0.0.1:1", rate=0)


def test_a_peak_is_ten_times_as_busy_and_then_over() -> None:
    peak = Peak(timedelta(minutes=20), timedelta(minutes=10))
    scenario = Scenario(seed=2, events=20_000, rate=5, peaks=(peak,))
    begin = epoch_ms("2026-01-05T00:00:00.000Z")
    first = Counter(
        (epoch_ms(event["event_time"]) - begin) // 600_000
        for m in simulate(scenario)
        if m.kind is Kind.NORMAL
        for event in [json.loads(m.value)]
        if event["event_type"] == "consultation.requested"
    )
    assert first[2] > 7 * first[1]
    assert first[3] < 2 * first[1]


def test_an_outage_holds_a_service_back_and_changes_no_event() -> None:
    down = Outage("insurance", timedelta(minutes=5), timedelta(minutes=10))
    clean = Scenario(events=6_000, rate=3, malformed_share=0, duplicate_share=0)
    usual = list(simulate(clean))
    held = list(simulate(replace(clean, outages=(down,))))
    begin = epoch_ms("2026-01-05T00:05:00.000Z")
    end = begin + 600_000
    claims = [m for m in held if m.topic == "insurance.events"]
    assert not [m for m in claims if begin <= m.timestamp_ms < end]
    flushed = [m for m in claims if end <= m.timestamp_ms < end + 30_000]
    assert sum(m.kind is Kind.LATE for m in flushed) > 20
    last = max(m.timestamp_ms for m in usual) - 1000
    assert {m.value for m in held if m.timestamp_ms < last} == {
        m.value for m in usual if m.timestamp_ms < last
    }


def test_an_envelope_holds_the_event_as_it_would_be_without() -> None:
    bare = Scenario(events=2_000, malformed_share=0.05)
    for one, other in zip(simulate(bare), simulate(replace(bare, sns=True)), strict=True):
        assert (one.topic, one.key, one.timestamp_ms, one.cause) == (
            other.topic, other.key, other.timestamp_ms, other.cause,
        )  # fmt: skip
        if one.cause in (Cause.EMPTY, Cause.NOT_UTF8):
            assert other.value == one.value
        else:
            envelope = json.loads(other.value)
            assert envelope["Message"].encode() == one.value
            assert envelope["TopicArn"].endswith(f":{one.topic.replace('.', '-')}")


def test_the_parts_of_a_scenario_have_events_of_their_own_and_are_as_many() -> None:
    parts = [list(simulate(part)) for part in Scenario(events=1_001, late_share=0).divided(3)]
    assert [len(part) for part in parts] == [334, 334, 333]
    values = [m.value for part in parts for m in part if m.kind is Kind.NORMAL]
    assert len(set(values)) == len(values)
    assert Scenario().divided(1) == [Scenario()]


@pytest.mark.embedded
def test_several_processes_send_what_their_parts_are() -> None:
    scenario = Scenario(events=3_000)
    topics = dict.fromkeys((domain.topic for domain in DOMAINS.values()), 2)
    with EmbeddedKafka(topics) as kafka:
        assert produce_by(2, scenario, kafka.bootstrap_servers) == Produced(3_000, False)
        found = consumed(kafka.bootstrap_servers, topics)
    wanted = [m.value for part in scenario.divided(2) for m in simulate(part)]
    assert sorted(message.value() or b"" for message in found) == sorted(wanted)


@pytest.mark.parametrize("text", ["1h", "1h/10m/0", "1h/10m/5/1", "x/10m"])
def test_a_peak_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"peak|duration"):
        peak_of(text)


@pytest.mark.parametrize("text", ["insurance/1h", "insurance/1h/0s"])
def test_an_outage_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="outage"):
        outage_of(text)


@pytest.mark.parametrize("sns", [False, True])
def test_echoes_are_the_same_events_of_other_transactions(sns: bool) -> None:
    scenario = Scenario(events=4_000, rate=400, echoes=4, sns=sns, malformed_share=0.02)
    found = list(simulate(scenario))
    assert found == list(simulate(scenario))
    assert len(found) == 4_000
    families: dict[tuple[bytes, int, str], list[SimulatedMessage]] = {}
    for message in found:
        same = (message.key[3:], message.timestamp_ms, message.topic)
        families.setdefault(same, []).append(message)
    whole = [family for family in families.values() if len(family) == 4]
    assert len(whole) > 900  # all but those that others share a moment with, and the last
    for family in whole:
        assert len({message.key for message in family}) == 4
        assert len({(message.kind, message.cause) for message in family}) == 1
        lengths = {len(message.value) for message in family}
        assert len(lengths) == 1
        if family[0].kind is not Kind.MALFORMED:
            assert len({message.value for message in family}) == 4
    events = [m for m in found if m.kind in (Kind.NORMAL, Kind.LATE)]
    position = found[0].value.index(b"event_id") if not sns else 0
    if not sns:
        ids = {message.value[position + 11 : position + 47] for message in events}
        assert len(ids) == len(events)
    assert all(message.key in message.value for message in events)


@pytest.mark.parametrize("echoes", [0, 17])
def test_more_echoes_than_ids_can_tell_are_refused(echoes: int) -> None:
    with pytest.raises(ValueError, match="echoes must be from 1 to 16"):
        Scenario(echoes=echoes)
