"""Saved objects into Kibana, by its import API."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import requests

TIMEOUT: Final = timedelta(seconds=60)

_REMEDIES: Final = {
    401: "give an API key, or a user and password",
    403: "who asks needs the privilege Saved Objects Management: All in this space",
    404: "is this Kibana, with its base path, if it has one, and /s/SPACE for a space?",
    413: "raise savedObjects.maxImportPayloadBytes, or push fewer jobs at a time",
    429: "Kibana is busy; try again",
    503: "Kibana is not ready; try again",
}

# Exception
#  └─ RuntimeError
#      └─ KibanaError              whoever pushes acts on what it says
#          ├─ KibanaUnreachable    no answer: the address, the network, TLS
#          ├─ KibanaRefused        an answer that is none of the import's
#          └─ NotAllImported       some objects were not taken, and are named


class KibanaError(RuntimeError):
    """Objects that are not, or not all, in Kibana: why, and the remedy."""


class KibanaUnreachable(KibanaError):
    """There was no answer; it is not known whether anything was imported."""


class KibanaRefused(KibanaError):
    """Kibana, or what stands at its address, did not import anything."""


class Failed(NamedTuple):
    """An object that was not imported."""

    type: str
    id: str
    why: str

    def __str__(self) -> str:
        return f"{self.type} {self.id}: {self.why}"


class NotAllImported(KibanaError):
    """Some objects were not imported; the others, so many, are there."""

    def __init__(self, imported: int, failed: Sequence[Failed]) -> None:
        super().__init__(imported, failed)
        self.imported, self.failed = imported, tuple(failed)

    def __str__(self) -> str:
        lines = (f"\n  {failed}" for failed in self.failed)
        return f"{self.imported} objects were imported, and {len(self.failed)} were not:{''.join(lines)}"


@dataclass(frozen=True, slots=True)
class Kibana:
    """Where Kibana is and who asks; the secrets show in no ``repr``.

    ``url`` includes the base path, if it has one, and ``/s/SPACE`` for a space that is not the
    default one.

    >>> Kibana("http://127.0.0.1:5601", api_key="c2VjcmV0")
    Kibana(url='http://127.0.0.1:5601', ca_certs=None, timeout=datetime.timedelta(seconds=60))
    """

    url: str
    api_key: str | None = field(default=None, repr=False)
    basic_auth: tuple[str, str] | None = field(default=None, repr=False)
    ca_certs: str | None = None
    """A file with the certificate of the authority that signed the server's."""
    timeout: timedelta = TIMEOUT

    def __post_init__(self) -> None:
        # No message repeats the URL: it may hold a password.
        url = urlsplit(self.url)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError("a URL such as https://kibana.internal:5601 is wanted")
        if url.username or url.password:
            raise ValueError("give the user and password apart, not in the URL")
        if url.query or url.fragment:
            raise ValueError("the URL ends with its path: leave out what follows ? or #")
        if self.api_key and self.basic_auth:
            raise ValueError("give an API key, or a user and password, not both")

    def push(self, objects: str) -> int:
        """Imports objects (NDJSON, as an export has them); those that are there are overwritten.

        Returns how many were imported: all. Raises ``NotAllImported`` if some were not, which
        names them, and another ``KibanaError`` if nothing was. It may be called again.
        Source: Kibana's API, "Import saved objects".
        """
        headers = {"kbn-xsrf": "velocity"}
        if self.api_key:
            headers["Authorization"] = f"ApiKey {self.api_key}"
        try:
            answer = requests.post(
                f"{self.url.rstrip('/')}/api/saved_objects/_import",
                params={"overwrite": "true"},
                files={"file": ("velocity.ndjson", objects.encode(), "application/x-ndjson")},
                headers=headers,
                auth=self.basic_auth or _NoAuth(),
                verify=self.ca_certs or True,
                timeout=self.timeout.total_seconds(),
                allow_redirects=False,  # to a login page, or with the key to another host
            )
        except requests.RequestException as error:
            raise KibanaUnreachable(f"Kibana did not answer: {error}") from error
        if answer.status_code != 200:
            raise KibanaRefused(_refusal(answer))
        return imported(_body(answer), len(objects.splitlines()))


class _NoAuth(requests.auth.AuthBase):
    """Keeps requests from looking into ``.netrc``, which would replace the API key."""

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        return request


def imported(answer: Any, sent: int) -> int:
    """How many of the objects sent an import's answer says are there; raises if it is not all.

    >>> imported({"success": True, "successCount": 2}, 2)
    2
    >>> imported({"success": False, "successCount": 1, "errors": [
    ...     {"type": "lens", "id": "a", "error": {"type": "missing_references",
    ...      "references": [{"type": "index-pattern", "id": "v"}]}}]}, 2)
    Traceback (most recent call last):
    velocity.io.kibana.NotAllImported: 1 objects were imported, and 1 were not:
      lens a: it needs index-pattern v, which is not there
    """
    try:
        count, success = int(answer["successCount"]), bool(answer["success"])
        failed = [
            Failed(str(e["type"]), str(e["id"]), _why(e["error"])) for e in answer.get("errors", [])
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise KibanaRefused(f"the answer is none of an import: {answer!r:.500}") from error
    if failed:
        raise NotAllImported(count, failed)
    if not success or count != sent:
        raise KibanaRefused(f"of {sent} objects Kibana tells of {count}: {answer!r:.500}")
    return count


def _why(error: Any) -> str:
    match error["type"]:
        case "missing_references":
            needed = ", ".join(f"{r['type']} {r['id']}" for r in error["references"])
            return f"it needs {needed}, which is not there"
        case "unsupported_type":
            return "this Kibana knows no such type: 8.11 or later is needed"
        case "conflict" | "ambiguous_conflict":
            return (
                "another object is there that can't be overwritten: delete it, or use a new space"
            )
        case kind:
            return str(error.get("message") or kind)


def _refusal(answer: requests.Response) -> str:
    status = answer.status_code
    if 300 <= status < 400:
        to = urlsplit(answer.headers.get("Location", "")).path
        return f"HTTP {status}: it leads on to {to}: give the URL of Kibana itself, and who asks"
    try:
        said = str(_body(answer).get("message", ""))
    except (KibanaRefused, AttributeError):
        said = answer.reason or ""
    remedy = _REMEDIES.get(status, "")
    return "; ".join(part for part in (f"HTTP {status}: {said:.500}", remedy) if part)


def _body(answer: requests.Response) -> Any:
    try:
        return answer.json()
    except json.JSONDecodeError as error:
        raise KibanaRefused(
            f"HTTP {answer.status_code} without JSON: is this Kibana? {answer.text!r:.200}"
        ) from error
