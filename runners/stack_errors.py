"""What can go wrong with the local stack, divided by who must act.

StackError
├── MissingTool       a JDK, Maven or pip: the user installs it
├── UnknownPackage    a jar that is not the one we pinned: the user clears a cache, or re-locks
├── PortTaken         another program listens there: the user gives another port
├── ServerFailed      a server did not come up or did not stop: its log says why
└── Busy              another command works on the same stack: the user waits
"""

from typing import ClassVar


class StackError(Exception):
    """The stack cannot do what was asked; the message says why and what to do."""

    exit_code: ClassVar[int] = 1


class MissingTool(StackError):
    exit_code = 3


class UnknownPackage(StackError):
    exit_code = 4


class PortTaken(StackError):
    exit_code = 5


class ServerFailed(StackError):
    exit_code = 6


class Busy(StackError):
    exit_code = 7
