"""How fast enrichment is with a warm cache, and how large the cache grows: one core, no service.

    python benchmarks/enrich.py [--rows N] [--keys N] [--batch N]
    python benchmarks/enrich.py --memory [--distinct N] [--size N]

A row has two columns added to it, a text of few values and a number. Keys are drawn evenly, so a batch
of 5,000 rows of 20,000 keys has some 4,400 different ones: nearly each row costs a look into the cache.
"""

import argparse
import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from velocity.io.lookup import Answers, Keep
from velocity.io.lookup_cache import Cache
from velocity.io.lookup_shared import Asked, SharedLookup
from velocity.io.records import MESSAGE, messages
from velocity.transforms.answers import Added
from velocity.transforms.enrich import Enrichment, enrich

ADD = {"city": Added("address.city"), "rating": Added("rating", "double")}


class Everything:
    """A source that knows all keys, in no time."""

    max_keys = 100
    concurrency = 1

    def can_ask(self, key: str) -> bool:
        return True

    def ask(self, keys: Sequence[str]) -> Asked:
        return Asked(
            {k: {"address": {"city": f"City {hash(k) % 500}"}, "rating": len(k) / 3} for k in keys},
            {},
        )

    def states(self) -> Mapping[str, int]:
        return {}

    def close(self) -> None:
        pass


class Direct:
    """A lookup of one process, as ``RestLookup`` has it."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._shared: SharedLookup | None = None

    def begin(self, keys: Sequence[str], keep: Keep) -> Callable[[], Answers]:
        self._shared = self._shared or SharedLookup(Everything(), keep, self._cache)
        return self._shared.begin(keys)


def warm(rows: int, keys: int, size: int) -> None:
    rng = random.Random(1)
    enrichment = Enrichment(Direct(Cache(size=2 * keys)), "key", ADD, wait_at_most=1)
    names = [f"PAT-{n:07d}" for n in range(keys)]
    message = pa.StructArray.from_arrays(
        messages([b"{}"] * size).columns, names=messages([]).schema.names
    )
    batches = [
        pa.RecordBatch.from_arrays(
            [pa.array(rng.choices(names, k=size)), message], ["key", MESSAGE]
        )
        for _ in range(50)
    ]
    for batch in batches:
        enrich(batch, [enrichment])
    rounds = rows // size // len(batches)
    began = time.process_time()
    for _ in range(rounds):
        for batch in batches:
            enrich(batch, [enrichment])
    seconds = time.process_time() - began
    done = rounds * len(batches) * size
    print(
        f"{done:,} rows of {keys:,} keys in batches of {size:,}: {done / seconds:,.0f} rows/s a core"
    )


def memory(distinct: int, size: int) -> None:
    enrichment = Enrichment(Direct(Cache(size=size)), "key", ADD, wait_at_most=1)
    before = _resident()
    for start in range(0, distinct, 10_000):
        keys = pa.array([f"PAT-{n:09d}" for n in range(start, start + 10_000)])
        message = pa.StructArray.from_arrays(
            messages([b"{}"] * 10_000).columns, names=messages([]).schema.names
        )
        enrich(pa.RecordBatch.from_arrays([keys, message], ["key", MESSAGE]), [enrichment])
    print(
        f"{distinct:,} distinct keys through a cache of {size:,}: at most "
        f"{(_resident() - before) / 2**20:,.0f} MiB more than before"
    )


def _resident() -> int:
    """The most that was resident so far, in bytes (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--keys", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=5_000)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--distinct", type=int, default=10_000_000)
    parser.add_argument("--size", type=int, default=100_000)
    given = parser.parse_args()
    if given.memory:
        memory(given.distinct, given.size)
    else:
        warm(given.rows, given.keys, given.batch)


if __name__ == "__main__":
    main()
