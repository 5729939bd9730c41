"""How a job is given to Flink: the options, where they lead, and what Beam and Flink make of them."""

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from velocity.io.key_groups import GROUPS
from velocity.runners.flink_errors import FlinkError
from velocity.runners.stack_state import StackState
from velocity.transforms.panes import PANES_TOLD

LOCAL: Final = "local"
"""The master that is a Flink inside the job server, its worker in the submitting process, or several beside it."""

MAX_PARALLELISM: Final = GROUPS
"""Into how many groups Flink divides keys, once for all: a savepoint of a job that has other
groups cannot be resumed, so it is the same for every parallelism."""

STATE_CACHE_MB: Final = 64
"""Of each Python worker, for states of keys; Beam's default is none."""

FLINK_VERSION: Final = "1.19"
"""Of the clusters that our own job server can talk to."""

BUNDLE_TIME: Final = timedelta(milliseconds=200)
"""After how long Flink ends a bundle, when the worker has done what is in it."""

STATE_BACKENDS: Final = ("hashmap", "rocksdb")

RUNNER_OPTIONS: Final = frozenset(
    {
        "--allow_non_restored_state",
        "--auto_watermark_interval",
        "--checkpoint_timeout_millis",
        "--checkpointing_interval",
        "--checkpointing_mode",
        "--disable_metrics",
        "--enable_stable_input_drain",
        "--execution_retry_delay",
        "--externalized_checkpoints_enabled",
        "--fail_on_checkpointing_errors",
        "--faster_copy",
        "--finish_bundle_before_checkpointing",
        "--flink_conf_dir",
        "--force_slot_sharing_group",
        "--force_unaligned_checkpoint_enabled",
        "--latency_tracking_interval",
        "--max_bundle_size",
        "--max_bundle_time_mills",
        "--min_pause_between_checkpoints",
        "--num_concurrent_checkpoints",
        "--number_of_execution_retries",
        "--object_reuse",
        "--operator_chaining",
        "--retain_externalized_checkpoints_on_cancellation",
        "--savepoint_path",
        "--shutdown_sources_after_idle_ms",
        "--state_backend",
        "--state_backend_storage_path",
        "--unaligned_checkpoint_enabled",
    }
)
"""What the job server knows and Beam for Python does not: passed on, though Beam calls each one
'Unparseable'. Source: ``FlinkPipelineOptions`` of Beam 2.70."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SCHEME: Final = re.compile(r"^https?://")


@dataclass(frozen=True, slots=True)
class FlinkOptions:
    """How a job shall run on Flink; what is None is left to the stack, or to the cluster.

    >>> FlinkOptions(parallelism=0)
    Traceback (most recent call last):
    ...
    ValueError: --parallelism is 0: give 1 to 128
    """

    master: str | None = None
    """``HOST:PORT`` or URL of Flink's REST interface, or ``local``; None is the stack's."""
    worker_pool: str | None = None
    """``HOST:PORT`` of the pool that starts Python workers; None is the stack's."""
    job_server_jar: Path | None = None
    parallelism: int = 2
    """Into how many subtasks each step is divided."""
    sdk_worker_parallelism: int = 1
    """How many Python processes a TaskManager has for the job."""
    checkpoint_interval: timedelta = timedelta(seconds=10)
    state_backend: str | None = None
    restart_attempts: int | None = None
    restart_delay: timedelta | None = None
    from_savepoint: str | None = None
    """Path or URL of a savepoint, or of a checkpoint that was kept."""
    allow_non_restored_state: bool = False
    """Whether state of the savepoint that no step of the job takes may be dropped."""
    name: str | None = None
    """In Flink; None makes one of the job's name and the time."""
    detach: bool = False
    streaming: bool = True
    """Whether Flink runs it as a stream; bounded input it may run as a batch too."""

    def __post_init__(self) -> None:
        if not 1 <= self.parallelism <= MAX_PARALLELISM:
            raise ValueError(f"--parallelism is {self.parallelism}: give 1 to {MAX_PARALLELISM}")
        if self.sdk_worker_parallelism < 1:
            raise ValueError(
                f"--sdk-worker-parallelism is {self.sdk_worker_parallelism}: give 1 or more"
            )
        if self.checkpoint_interval < timedelta(milliseconds=10):
            raise ValueError(
                f"--checkpoint-interval is {_millis(self.checkpoint_interval)} ms: give 10ms or"
                " more, better 1s or more"
            )
        if self.state_backend not in (None, *STATE_BACKENDS):
            raise ValueError(
                f"--state-backend is {self.state_backend!r}: give {' or '.join(STATE_BACKENDS)}"
            )
        if self.restart_attempts is not None and self.restart_attempts < 0:
            raise ValueError(f"--restart-attempts is {self.restart_attempts}: give 0 or more")
        if self.restart_delay is not None and self.restart_attempts is None:
            raise ValueError("--restart-delay is for a number of --restart-attempts: give it too")
        if self.allow_non_restored_state and self.from_savepoint is None:
            raise ValueError("--allow-non-restored-state is for --from-savepoint: give it too")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise ValueError(
                f"--name is {self.name!r}: give letters, digits, '.', '_' and '-', 128 at most,"
                " a letter or digit first"
            )
        if self.master == LOCAL:
            for option, value in (
                ("--detach", self.detach),
                ("--worker-pool", self.worker_pool),
            ):
                if value:
                    raise ValueError(
                        f"{option} is for a Flink cluster, and --flink-master is {LOCAL}: start one"
                        " with `velocity stack up kafka flink`, and leave --flink-master out"
                    )


@dataclass(frozen=True, slots=True)
class Target:
    """Where a job goes."""

    rest: str
    """``host:port`` of Flink's REST interface, or ``[local]``."""
    workers: str | None
    """``host:port`` of the worker pool; None where workers live in this process, or the user's
    own options name another environment."""

    @property
    def local(self) -> bool:
        return self.rest == "[local]"


def target(options: FlinkOptions, stack: StackState, own: Sequence[str] = ()) -> Target:
    """Where the options lead, given what the stack has; ``own`` are the user's Beam options.

    >>> target(FlinkOptions(master="local"), StackState())
    Target(rest='[local]', workers=None)
    """
    if options.master == LOCAL:
        return Target("[local]", None)
    ours = stack.address("flink")
    master = options.master or ours
    if master is None:
        raise FlinkError(
            "no Flink is up: start one with `velocity stack up kafka flink`, give the address of"
            f" yours with --flink-master HOST:PORT, or run without a cluster: --flink-master {LOCAL}"
        )
    workers = options.worker_pool
    if workers is None and _address(master) == _address(ours or ""):
        workers = stack.address("workers")
    if workers is None and not any(option.startswith("--environment_type") for option in own):
        raise FlinkError(
            f"Flink at {_address(master)} is not the stack's, so its Python workers are not known:"
            " give the pool that starts them with --worker-pool HOST:PORT, or another environment"
            " with -- --environment_type=..."
        )
    return Target(_address(master), workers)


def pipeline_options(
    options: FlinkOptions, target: Target, name: str, *, bounded: bool
) -> list[str]:
    """Beam's options for a submission under a name; the user's own come after them and win."""
    chosen = [
        "--runner=PortableRunner",
        f"--job_name={name}",
        *(["--streaming"] if options.streaming else []),
        f"--parallelism={options.parallelism}",
        f"--max_parallelism={MAX_PARALLELISM}",
        f"--sdk_worker_parallelism={options.sdk_worker_parallelism}",
        f"--checkpointing_interval={_millis(options.checkpoint_interval)}",
        # Without it the first bundle's output can wait for a next bundle that never comes.
        "--finish_bundle_before_checkpointing",
        # An event waits for the end of the bundles of some three steps; by default each is a second.
        f"--max_bundle_time_mills={_millis(BUNDLE_TIME)}",
        f"--experiments={PANES_TOLD}",
    ]
    if bounded:
        # Else Beam keeps sources that have ended, as Flink before 1.14 took no checkpoint without.
        chosen.append("--shutdown_sources_after_idle_ms=0")
    elif not target.local:
        # The last checkpoint of a job that is cancelled or fails is what it can go on from. Beam's
        # options decide what becomes of it, whatever the cluster's configuration says.
        chosen += [
            "--externalized_checkpoints_enabled",
            "--retain_externalized_checkpoints_on_cancellation",
        ]
    if target.workers or target.local:
        # A worker that wrote a state need not ask for it: a pane after its window's first would wait.
        # Other workers than ours would take longer to weigh it than to ask.
        chosen.append(f"--max_cache_memory_usage_mb={STATE_CACHE_MB}")
    if target.workers:
        chosen += ["--environment_type=EXTERNAL", f"--environment_config={target.workers}"]
    elif target.local:
        chosen.append("--environment_type=LOOPBACK")
    if options.from_savepoint is not None:
        chosen.append(f"--savepoint_path={options.from_savepoint}")
    if options.allow_non_restored_state:
        chosen.append("--allow_non_restored_state")
    return chosen


def configuration(options: FlinkOptions) -> dict[str, str | int | bool]:
    """Flink's own keys for the job; nothing where the cluster's shall hold.

    >>> configuration(FlinkOptions(restart_attempts=0))
    {'restart-strategy.type': 'none'}
    """
    keys: dict[str, str | int | bool] = {}
    none = (
        options.restart_attempts is None and options.master == LOCAL
    )  # who tries out wants to know
    if options.restart_attempts == 0 or none:
        keys["restart-strategy.type"] = "none"
    elif options.restart_attempts is not None:
        delay = timedelta(seconds=10) if options.restart_delay is None else options.restart_delay
        keys["restart-strategy.type"] = "fixed-delay"
        keys["restart-strategy.fixed-delay.attempts"] = options.restart_attempts
        keys["restart-strategy.fixed-delay.delay"] = f"{_millis(delay)} ms"
    if options.state_backend is not None:
        keys["state.backend.type"] = options.state_backend
        keys["state.backend.incremental"] = options.state_backend == "rocksdb"
    return keys


def unique_name(
    job: str,
    *,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    token: Callable[[], str] = lambda: secrets.token_hex(2),
) -> str:
    """A name for one submission of a job.

    >>> unique_name("orders", now=lambda: datetime(2026, 1, 5, 7, 30), token=lambda: "3fa9")
    'orders-20260105-073000-3fa9'
    """
    return f"{job}-{now():%Y%m%d-%H%M%S}-{token()}"


def _address(master: str) -> str:
    return _SCHEME.sub("", master.strip()).rstrip("/")


def _millis(duration: timedelta) -> int:
    return duration // timedelta(milliseconds=1)
