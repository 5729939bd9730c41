"""What a copy's headers say, whoever wrote them."""

from datetime import UTC, datetime

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from velocity.io.copies import (
    ATTEMPT,
    ORIGIN,
    Origin,
    attempt_of,
    attempts,
    copy_headers,
    origin_of,
)
from velocity.io.records import MESSAGES, Cause, Stage, dead_letters

NAMES = st.sampled_from([ATTEMPT, ORIGIN, "trace", "velocity.attempt"]) | st.text()
HEADERS = st.lists(st.tuples(NAMES, st.none() | st.binary()), max_size=4)
ORIGINS = st.builds(
    Origin, st.from_regex(r"[a-z][a-zA-Z0-9._-]*", fullmatch=True), *[st.integers(0, 2**31)] * 2
)


@given(HEADERS, ORIGINS, st.integers(2, 1000))
def test_a_copy_says_of_what_and_which_attempt_it_is_and_keeps_the_other_headers(
    own: list[tuple[str, bytes | None]], origin: Origin, attempt: int
) -> None:
    headers = copy_headers(own, origin, attempt)
    assert (origin_of(headers), attempt_of(headers)) == (origin, attempt)
    assert headers[:-2] == [h for h in own if h[0] not in (ATTEMPT, ORIGIN)]


@given(HEADERS)
def test_what_anyone_wrote_into_the_headers_is_no_error(
    headers: list[tuple[str, bytes | None]],
) -> None:
    assert 1 <= attempt_of(headers) < 2**31
    assert origin_of(headers) is None or str(origin_of(headers)).count("/") == 2


@given(st.lists(st.none() | HEADERS, max_size=4))
def test_a_dead_letter_is_of_the_attempt_that_its_message_says(
    rows: list[list[tuple[str, bytes | None]] | None],
) -> None:
    messages = pa.RecordBatch.from_pylist(
        [
            {
                "topic": "t",
                "headers": None if row is None else [{"name": n, "value": v} for n, v in row],
            }
            for row in rows
        ],
        schema=MESSAGES,
    )
    assert attempts(messages["headers"]).type == pa.int32()
    letters = dead_letters(
        messages,
        stage=Stage.DECODE,
        causes=[Cause.EMPTY] * len(rows),
        errors=[""] * len(rows),
        failed_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    assert letters["attempt"].to_pylist() == [attempt_of(row or ()) for row in rows]
