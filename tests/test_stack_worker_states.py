"""Laws of the states that a worker holds: as many as are at hand, and never another value for it."""

import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import BytesCoder, FastPrimitivesCoder
from apache_beam.coders.coders import GlobalWindowCoder
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.portability.fn_api_runner.fn_runner import FnApiRunner
from apache_beam.runners.worker import bundle_processor, statecache
from apache_beam.runners.worker.sdk_worker import GlobalCachingStateHandler, _Future
from apache_beam.runners.worker.statecache import StateCache
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.userstate import (
    BagStateSpec,
    CombiningValueStateSpec,
    ReadModifyWriteStateSpec,
)
from apache_beam.transforms.window import GlobalWindow
from hypothesis import given
from hypothesis import strategies as st

from velocity.runners.stack_worker_states import BoundedStates, bound_states, weight

LAST = ReadModifyWriteStateSpec("last", FastPrimitivesCoder())
ALL = BagStateSpec("all", FastPrimitivesCoder())
WINDOW = GlobalWindow()
TOKEN = beam_fn_api_pb2.ProcessBundleRequest.CacheToken(
    user_state=beam_fn_api_pb2.ProcessBundleRequest.CacheToken.UserState(), token=b"t"
)


class Runner:
    """What a runner keeps of states, in the bytes of their coder."""

    def __init__(self) -> None:
        self.kept: dict[bytes, list[bytes]] = {}

    def blocking_get(self, key: Any, coder: Any) -> Iterator[Any]:
        return (coder.decode(value) for value in self.kept.get(key.SerializeToString(), []))

    def extend(self, key: Any, coder: Any, values: Any) -> Any:
        kept = self.kept.setdefault(key.SerializeToString(), [])
        kept += [coder.encode(value) for value in values]
        return self

    def clear(self, key: Any) -> Any:
        self.kept.pop(key.SerializeToString(), None)
        return self

    def get(self) -> None:
        """A write is done at once."""


def states(runner: Runner, most: int) -> BoundedStates:
    made = BoundedStates(runner, "step", BytesCoder(), GlobalWindowCoder())
    made.most = most
    return made


touches = st.tuples(
    st.sampled_from([b"a", b"b", b"c", b"d", b"e"]),
    st.sampled_from(["write", "add", "clear", "both"]),
    st.integers(0, 9),
)


def touched(
    last: Any, all_: Any, what: str, value: int, known: tuple[Any, list[int]], *, writes: Any
) -> tuple[Any, list[int]]:
    """Does to both states of a key what a touch says; their values after it."""
    newest, several = known
    if what in ("write", "both"):
        last.write(newest := writes)
    if what in ("add", "both"):
        all_.add(value)
        several = [*several, value]
    if what == "clear":
        all_.clear()
        several = []
    return newest, several


@given(st.lists(touches, max_size=60), st.integers(0, 6), st.integers(1, 7))
def test_every_key_has_the_values_that_it_would_have_without_a_bound(
    calls: list[tuple[bytes, str, int]], most: int, a_bundle: int
) -> None:
    runner = Runner()
    wanted: dict[bytes, tuple[int | None, list[int]]] = {key: (None, []) for key, _, _ in calls}
    for start in range(0, len(calls), a_bundle):
        context = states(runner, most)
        for key, what, value in calls[start : start + a_bundle]:
            # Both handles first, as a DoFn gets them before it runs.
            last = context.get_state(LAST, key, WINDOW)
            all_ = context.get_state(ALL, key, WINDOW)
            assert (last.read(), sorted(all_.read())) == (wanted[key][0], sorted(wanted[key][1]))
            wanted[key] = touched(last, all_, what, value, wanted[key], writes=value)
            assert len(context._all_states) <= most + 2
        context.commit()
        context.reset()


class Raw:
    """A runner's end of the states, as Beam's cache asks for it."""

    def __init__(self) -> None:
        self.kept: dict[bytes, bytes] = {}
        self.reads = 0

    @contextmanager
    def process_instruction_id(self, bundle_id: str) -> Iterator[None]:
        yield

    def get_raw(self, key: Any, token: bytes | None = None) -> tuple[bytes, bytes | None]:
        self.reads += 1
        return self.kept.get(key.SerializeToString(), b""), None

    def append_raw(self, key: Any, data: bytes) -> Any:
        at = key.SerializeToString()
        self.kept[at] = self.kept.get(at, b"") + data
        return _Future().set(beam_fn_api_pb2.StateResponse())

    def clear(self, key: Any) -> Any:
        self.kept.pop(key.SerializeToString(), None)
        return _Future().set(beam_fn_api_pb2.StateResponse())


@given(st.lists(touches, max_size=60), st.integers(1, 7), st.integers(100, 2_000))
def test_a_cache_of_any_size_changes_no_value(
    calls: list[tuple[bytes, str, int]], a_bundle: int, size: int
) -> None:
    raw, cache = Raw(), StateCache(size)
    wanted: dict[bytes, tuple[Any, list[int]]] = {key: (None, []) for key, _, _ in calls}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statecache, "get_deep_size", weight)
        for start in range(0, len(calls), a_bundle):
            handler = GlobalCachingStateHandler(cache, raw)
            with handler.process_instruction_id(str(start), [TOKEN]):
                context = BoundedStates(handler, "step", BytesCoder(), GlobalWindowCoder())
                for key, what, value in calls[start : start + a_bundle]:
                    last = context.get_state(LAST, key, WINDOW)
                    all_ = context.get_state(ALL, key, WINDOW)
                    assert (last.read(), list(all_.read())) == wanted[key]
                    writes = value, [value]
                    wanted[key] = touched(last, all_, what, value, wanted[key], writes=writes)
                context.commit()


def test_a_state_that_this_worker_wrote_is_not_asked_for() -> None:
    raw, cache = Raw(), StateCache(10_000)
    for bundle in range(3):
        handler = GlobalCachingStateHandler(cache, raw)
        with handler.process_instruction_id(str(bundle), [TOKEN]):
            context = BoundedStates(handler, "step", BytesCoder(), GlobalWindowCoder())
            last = context.get_state(LAST, b"a", WINDOW)
            assert bundle == 0 or last.read() == bundle - 1
            last.write(bundle)
            context.commit()
    assert raw.reads == 0


class Slow(Runner):
    """Answers a write only when it is asked for the answer, and fails those of one key."""

    def __init__(self, fails: str = "") -> None:
        super().__init__()
        self.waited_for: list[str] = []
        self._fails = fails

    def extend(self, key: Any, coder: Any, values: Any) -> Any:
        super().extend(key, coder, values)
        return types.SimpleNamespace(get=lambda: self._answer(key.bag_user_state.key[-1:].decode()))

    def _answer(self, key: str) -> None:
        self.waited_for.append(key)
        if key == self._fails:
            raise RuntimeError(f"{key} could not be written")


def test_all_writes_are_sent_before_the_first_is_waited_for() -> None:
    runner = Slow()
    context = states(runner, 10)
    for key in (b"a", b"b"):
        context.get_state(ALL, key, WINDOW).add(1)
    bundle_processor.FnApiUserStateContext.commit(context)
    assert (len(runner.kept), runner.waited_for) == (2, [])
    context.commit()
    assert runner.waited_for == ["a", "b", "a", "b"]


def test_a_write_that_failed_fails_the_commit() -> None:
    context = states(Slow(fails="a"), 10)
    for key in (b"a", b"b"):
        context.get_state(ALL, key, WINDOW).add(1)
    with pytest.raises(RuntimeError, match="a could not be written"):
        context.commit()


class Count(beam.DoFn):
    SEEN = CombiningValueStateSpec("seen", FastPrimitivesCoder(), beam.combiners.CountCombineFn())

    def process(
        self,
        element: tuple[str, int],
        seen: Any = beam.DoFn.StateParam(SEEN),  # noqa: B008
    ) -> Iterator[tuple[str, int]]:
        seen.add(1)
        yield element[0], seen.read()


def test_beam_runs_a_pipeline_with_bounded_states(monkeypatch: pytest.MonkeyPatch) -> None:
    held: Counter[int] = Counter()

    class Watched(BoundedStates):
        most = 10

        def get_state(self, *args: Any) -> Any:
            found = super().get_state(*args)
            held[len(self._all_states)] += 1
            return found

    monkeypatch.setattr(bundle_processor, "FnApiUserStateContext", None)  # and back in the end
    monkeypatch.setattr(statecache, "get_deep_size", None)
    bound_states()
    assert bundle_processor.FnApiUserStateContext is BoundedStates
    monkeypatch.setattr(bundle_processor, "FnApiUserStateContext", Watched)
    events = [(f"key {n % 100}", n) for n in range(300)]
    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        counted = pipeline | beam.Create(events) | beam.ParDo(Count())
        wanted = [(f"key {n}", count) for n in range(100) for count in (1, 2, 3)]
        assert_that(counted, equal_to(wanted))
    assert sum(held.values()) == 300
    assert max(held) == 10
