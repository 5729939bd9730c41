"""A metric's own ids: no two keys and windows have one, or the template is refused."""

import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velocity.transforms.ids import LONGEST, IdTemplate
from velocity.transforms.windows import Days, Fixed, Global, Session, Sliding, Window

HOUR = timedelta(hours=1)
DAYS = Days(1, "Europe/London")
WINDOWS: dict[str, Window] = {
    "fixed": Fixed(HOUR, timedelta(minutes=7)),
    "sliding": Sliding(HOUR, timedelta(minutes=5)),
    "session": Session(timedelta(seconds=40)),
    "days": DAYS,
}
VALUES = (
    st.none() | st.text("ab_-/%{}é \x00", max_size=4) | st.sampled_from(["null", "%null", "61"])
)
LITERALS = st.text("a_-/:. %é", max_size=3) | st.sampled_from(["/", "a-", "%.", "_:a"])
FORMATS = ["", ":%Y-%m-%dT%H:%M:%S", ":%Y%m%d%H%M", ":%Y.%m.%d %H", ":%Y%m%d", ":%H", ":%Y%d%m%H"]


@settings(max_examples=300)
@given(
    st.data(),
    st.sampled_from(list(WINDOWS)),
    st.permutations(["{a}", "{b}", "{window_start}"]),
    st.sampled_from(FORMATS),
    st.lists(LITERALS, min_size=4, max_size=4),
)
def test_two_documents_have_two_ids_or_the_template_is_refused(
    data: st.DataObject, kind: str, names: list[str], spec: str, literals: list[str]
) -> None:
    window = WINDOWS[kind]
    holes = [name.replace("start}", f"start{spec}}}") for name in names]
    template = "".join(text for pair in zip(literals, [*holes, ""], strict=True) for text in pair)
    try:
        ids = IdTemplate(template, "j", "m", ["a", "b"], window)
    except ValueError:
        return
    times = st.integers(0, 10**13)

    def start() -> int:
        time = data.draw(times)
        if isinstance(window, Session):
            return window.slot(time)
        [first, *_] = window.starts(time)
        return first

    one = start()
    other = one if data.draw(st.booleans()) else start()
    if isinstance(window, Days) and data.draw(st.booleans()):
        other = window.end(one)
    keys = data.draw(st.tuples(VALUES, VALUES)), data.draw(st.tuples(VALUES, VALUES))
    found = ids.of(one, keys[0]), ids.of(other, keys[1])
    assert (found[0] == found[1]) == ((one, keys[0]) == (other, keys[1]))
    assert all(id_.startswith(ids.begin) for id_ in found)


@pytest.mark.parametrize(
    ("template", "window", "says"),
    [
        ("{city}/{window_start}", Fixed(HOUR), "{tier} must be in it"),
        ("{city}/{tier}", Fixed(HOUR), "{window_start} must be in it"),
        ("{city}/{tier}/{window_start}", Global(), "leave {window_start} out"),
        ("{city}{tier}/{window_start}", Fixed(HOUR), "between {city} and {tier} put a character"),
        ("{city}_{tier}/{window_start}", Fixed(HOUR), "between {city} and {tier} put a character"),
        ("{city}/{tier}/{window_start:%Y-%m-%d}", Fixed(HOUR), "windows begin 1:00:00 apart"),
        ("{city}/{tier}/{window_start:%Y-%m-%d}", DAYS, "which {window_start:%Y-%m-%d} does not tell"),
        ("{city}/{tier}/{window_start:%d %H}", Fixed(HOUR), "give {window_start} a format of %Y %m %d"),
        ("{city}/{teir}/{window_start}", Fixed(HOUR), "{teir} is not known here; there are: {city}"),
        ("{city:>9}/{tier}/{window_start}", Fixed(HOUR), "{city} takes no format"),
        ("{city!r}/{tier}/{window_start}", Fixed(HOUR), "{city} takes no format"),
        ("{city/{tier}", Fixed(HOUR), "id: "),
        ("x" * 129 + "{city}/{tier}/{window_start}", Fixed(HOUR), "begin with 128 bytes at most"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_template_is_told(template: str, window: Window, says: str) -> None:
    with pytest.raises(ValueError, match=f"^id: .*{re.escape(says.removeprefix('id: '))}"):
        IdTemplate(template, "j", "m", ["city", "tier"], window)


def test_an_id_that_is_too_long_is_a_hash_behind_its_begin() -> None:
    ids = IdTemplate("{job}-{metric}/{a}", "j", "m", ["a"], Global())
    one, other = ids.of(0, ["x" * 600]), ids.of(0, ["x" * 601])
    assert one != other
    assert re.fullmatch("j-m/[0-9a-f]{64}", one)
    assert len(ids.of(0, ["x" * (LONGEST - 4)])) == LONGEST


def test_an_id_is_the_same_in_each_run_and_version_of_velocity() -> None:
    """Another id would leave the old document beside the new one."""
    values: list[Any] = ["Kota-Baru/é", None, True, -5]
    ids = IdTemplate("{metric}:{a}|{b}|{c}|{d}", "j", "m", ["a", "b", "c", "d"], Global())
    assert ids.of(0, values) == "m:Kota%2DBaru%2Fé|%null|true|%2D5"
