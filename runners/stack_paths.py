"""Where the stack keeps what it downloads (cache) and what its servers write (state)."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

JAVA_SOURCES: Final = Path(__file__).parent / "java"
"""Poms, lock files and Java sources, shipped with the package."""


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where downloads go: ``VELOCITY_CACHE``, else ``velocity`` in the XDG cache folder.

    >>> cache_folder({"VELOCITY_CACHE": "/data/cache"})
    PosixPath('/data/cache')
    >>> cache_folder({"XDG_CACHE_HOME": "/home/ani/.cache"})
    PosixPath('/home/ani/.cache/velocity')
    """
    return _folder(environ, "VELOCITY_CACHE", "XDG_CACHE_HOME", ".cache")


def state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where servers keep data and logs: ``VELOCITY_STATE``, else in the XDG state folder.

    >>> state_folder({"HOME": "/home/ani"})
    PosixPath('/home/ani/.local/state/velocity')
    """
    return _folder(environ, "VELOCITY_STATE", "XDG_STATE_HOME", ".local/state")


def _folder(environ: Mapping[str, str], own: str, xdg: str, default: str) -> Path:
    if given := environ.get(own):
        return Path(given).absolute()
    if base := environ.get(xdg):
        return Path(base).absolute() / "velocity"
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    return home / default / "velocity"
