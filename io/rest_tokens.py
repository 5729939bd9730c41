"""Tokens that expire: from an OAuth 2 server or a command, renewed before they do."""

import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from urllib.parse import urlsplit

import requests

from velocity.io.rest_calls import require
from velocity.io.rest_deadline import mount, within

_MARGIN = 30.0
"""Seconds before its end at which a token is renewed."""


class NoToken(Exception):
    """There is no token; ``args[0]`` says why, without a secret."""


@dataclass(frozen=True, slots=True)
class Token:
    """Where a bearer token comes from: exactly one of ``url`` and ``command``.

    ``url`` is that of an OAuth 2 server (client credentials, RFC 6749, 4.4), which says how long the
    token holds. A ``command``, run without a shell, prints one; it holds for ``ttl`` seconds.
    """

    url: str | None = None
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    scope: str | None = None
    command: str | None = None
    ttl: float = 300.0

    def __post_init__(self) -> None:
        require(
            (self.url is None) != (self.command is None),
            "token: give exactly one of url and command",
        )
        if self.url is not None:
            parts = urlsplit(self.url)
            require(
                parts.scheme in ("http", "https") and bool(parts.hostname),
                "token.url: start with http://HOST or https://HOST",
            )
            require(
                bool(self.client_id and self.client_secret),
                "token: url needs client_id and client_secret",
            )
        elif self.command is not None:
            try:
                words = shlex.split(self.command)
            except ValueError as error:
                raise ValueError(f"token.command: {error}") from None
            require(bool(words), "token.command: give a command that prints a token")
        require(self.ttl > 0, "token.ttl: give seconds above 0")


class Tokens:
    """The token of now. Safe for threads; one at a time asks for a new one.

    >>> tokens = Tokens(Token(command="echo t0ken"))
    >>> tokens.get()
    't0ken'
    """

    def __init__(
        self,
        config: Token,
        *,
        within: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._within, self._clock = config, within, clock
        self._lock = Lock()
        self._token, self._until = "", float("-inf")

    def get(self, refused: str | None = None) -> str:
        """A token; not ``refused``, which the service did not take. Raises ``NoToken``."""
        with self._lock:
            if self._token == refused or self._clock() >= self._until:
                self._token, holds = self._new()
                # One that holds for less than the margin is used for half its time.
                self._until = self._clock() + max(holds - _MARGIN, holds / 2)
            return self._token

    def _new(self) -> tuple[str, float]:
        token, holds = self._by_url() if self._config.url else self._by_command()
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise NoToken("what came is no token: printable ASCII without blanks is wanted")
        return token, holds

    def _by_url(self) -> tuple[str, float]:
        config = self._config
        form = {"grant_type": "client_credentials"}
        if config.scope is not None:
            form["scope"] = config.scope
        where = f"the token's server {urlsplit(config.url or '').netloc}"
        try:
            with requests.Session() as session, within(self._within):
                mount(session)
                answer = session.post(
                    config.url or "",
                    data=form,
                    auth=(config.client_id, config.client_secret),
                    headers={"Accept": "application/json"},
                    timeout=self._within,
                    allow_redirects=False,
                )
            body = answer.json() if answer.status_code == 200 else None
        except requests.RequestException as error:
            raise NoToken(f"{where}: {type(error).__name__}") from None
        if not isinstance(body, dict) or not isinstance(body.get("access_token"), str):
            raise NoToken(f"{where} answered with status {answer.status_code} and no token")
        holds = body.get("expires_in")
        if not isinstance(holds, int | float) or holds <= 0:
            holds = config.ttl
        return body["access_token"], float(holds)

    def _by_command(self) -> tuple[str, float]:
        words = shlex.split(self._config.command or "")
        try:
            done = subprocess.run(
                words, capture_output=True, text=True, timeout=self._within, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoToken(f"the token's command {words[0]}: {type(error).__name__}") from None
        if done.returncode:
            raise NoToken(f"the token's command {words[0]} ended with {done.returncode}")
        return done.stdout.strip(), self._config.ttl
