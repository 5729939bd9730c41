"""What can go wrong with a job on Flink, divided by who must act, and the cause of it in short.

FlinkError
├── FlinkUnreachable   no cluster answers: the user starts one, or gives another address
├── UnknownJob         no such job, or several: the user names another
├── FlinkRefused       the cluster does not do what was asked: its own words say why
├── SavepointFailed    no savepoint could be written: the job goes on
└── JobFailed          the job itself failed, at its start or later: its cause says who must act
"""

import re
from typing import Final

LONGEST: Final = 1500
"""Characters of a cause that are shown."""

_WRAPPED: Final = re.compile(r"^(?:[\w.$]+(?:Exception|Error|Throwable): )+(?=\S)")


class FlinkError(Exception):
    """Flink cannot do what was asked; the message says why and what to do."""


class FlinkUnreachable(FlinkError):
    pass


class UnknownJob(FlinkError):
    pass


class FlinkRefused(FlinkError):
    pass


class SavepointFailed(FlinkError):
    pass


class JobFailed(FlinkError):
    pass


def root_cause(trace: str) -> str:
    """The innermost cause in a stack trace of Java, which may hold one of Python, in short.

    >>> root_cause("java.lang.Exception: no\\n\\tat a.B.c(B.java:1)\\nCaused by: d.DiskError: disk full\\n")
    'disk full'
    >>> root_cause('x.Y: Error received from SDK harness for instruction 4: Traceback (most recent '
    ... 'call last):\\n  File "a.py", line 1, in f\\n    g()\\nmine.Bad: no topic\\n\\n\\tat a.B.c(B.java:1)')
    'mine.Bad: no topic'
    """
    lines = trace.splitlines()
    python = [i for i, line in enumerate(lines) if "Traceback (most recent call last)" in line]
    if python:
        cause = _after_traceback(lines[python[-1] + 1 :])
    else:
        starts = [i for i, line in enumerate(lines) if line.startswith("Caused by: ")]
        first = starts[-1] if starts else 0
        own = lines[first : first + 1]
        for line in lines[first + 1 :]:
            if line.lstrip().startswith(("at ", "...")):
                break
            own.append(line)
        cause = _WRAPPED.sub("", "\n".join(own).removeprefix("Caused by: "))
    cause = cause.strip() or "no cause is given"
    return cause if len(cause) <= LONGEST else cause[:LONGEST] + " …"


def _after_traceback(lines: list[str]) -> str:
    """The exception at the end of a traceback of Python, without the frames of either language."""
    frames = True
    own: list[str] = []
    for line in lines:
        if frames and line.startswith((" ", "\t")):
            continue
        frames = False
        if line.startswith(("\tat ", "Caused by: ")) or (own and not line.strip()):
            break
        own.append(line)
    return "\n".join(own)
