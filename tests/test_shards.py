"""Laws of how the keys of metrics are shared out."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from velocity.io.key_groups import GROUPS, group_of
from velocity.transforms.shards import _NAMES, SHARDS, nested, shard_of


def subtask_of(shard: bytes, parallelism: int) -> int:
    """Where Flink has a shard."""
    return group_of(nested(shard)) * parallelism // GROUPS


@given(st.integers(1, SHARDS))
def test_any_number_of_subtasks_has_as_many_shards_each_give_or_take_one(parallelism: int) -> None:
    has = Counter(subtask_of(shard, parallelism) for shard in _NAMES)
    assert len(has) == parallelism
    assert max(has.values()) - min(has.values()) <= 1


def test_keys_are_shared_out_evenly() -> None:
    keys = Counter(shard_of(f'["orders","{n}"]'.encode()) for n in range(100 * SHARDS))
    assert len(keys) == SHARDS
    assert 50 < min(keys.values()) <= max(keys.values()) < 150


def test_a_key_keeps_its_shard_in_every_run_and_version() -> None:
    """A savepoint has its state there."""
    shards = [shard_of(f'["orders","{city}"]'.encode()) for city in ("Solo", "Bandung", "Medan")]
    assert shards == [b"89", b"84", b"182"]
