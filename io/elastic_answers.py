"""What Elasticsearch's answers to a bulk mean, for its documents and for the whole request."""

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any, Final, NamedTuple


class Verdict(Enum):
    """What Elasticsearch's answer means for one document."""

    WRITTEN = auto()
    STALE = auto()
    """Its version, or a greater one, is there already."""
    RETRY = auto()
    REJECTED = auto()


class Fate(Enum):
    """What an answer means for its whole request."""

    READ = auto()
    """Each document has an answer of its own."""
    RETRY = auto()
    SPLIT = auto()
    """Something in it is refused; halves tell what."""
    FAIL = auto()
    """No document is at fault and no retry helps: address, rights, product."""


class Answer(NamedTuple):
    """What came back for a bulk: an item for each of its operations if the fate is ``READ``."""

    fate: Fate
    items: Sequence[Mapping[str, Any]]
    error: str


# States of the cluster, not faults of the document, whatever status they come with: an operator's
# write block, for one, has 403, a closed index 400. The bundle waits for them, and fails if they
# stay, so that no document is lost to what someone may mend.
_PASSING: Final = {
    "circuit_breaking_exception",
    "cluster_block_exception",
    "es_rejected_execution_exception",
    "index_closed_exception",
    "validation_exception",  # no new index, as the cluster holds all the shards that it may
}
_NOT_ALLOWED: Final = (401, 403, 404)
"""Rights or an index are missing: true of all documents alike, and the fault of none."""
_OTHER_SERVER: Final = "media_type_header_exception"


def judge(item: Mapping[str, Any]) -> tuple[Verdict, str]:
    """The verdict on one item of a bulk's answer, and its error (``type: reason``).

    A conflict means that a newer version is there or, for ``create``, the document itself.

    >>> judge({"index": {"status": 201}})
    (<Verdict.WRITTEN: 1>, '')
    >>> judge({"index": {"status": 409, "error": {
    ...     "type": "version_conflict_engine_exception", "reason": "version [5] is higher"}}})
    (<Verdict.STALE: 2>, 'version_conflict_engine_exception: version [5] is higher')
    >>> judge({"delete": {"status": 404}})  # it is not there, as was wanted
    (<Verdict.WRITTEN: 1>, '')
    """
    ((action, answer),) = item.items()
    status, error = answer["status"], answer.get("error")
    kind = error["type"] if isinstance(error, dict) else ""
    if error is None and (200 <= status < 300 or (action, status) == ("delete", 404)):
        return Verdict.WRITTEN, ""
    if status == 409 and kind == "version_conflict_engine_exception":
        return Verdict.STALE, error_in(answer)
    if status == 429 or status >= 500 or kind in _PASSING or status in _NOT_ALLOWED:
        return Verdict.RETRY, error_in(answer)
    return Verdict.REJECTED, error_in(answer)


def judge_request(status: int, body: Any = None) -> Fate:
    """The fate of a request by its status and the answer; status 0: no whole answer came.

    A 400 is split like a 413: one document that fails Elasticsearch's validation of the request,
    by an id of more than 512 bytes for one, has the whole bulk refused. One that does not say so in
    Elasticsearch's own words is of what stands between, and no document's fault.

    >>> judge_request(200), judge_request(503), judge_request(413), judge_request(401)
    (<Fate.READ: 1>, <Fate.RETRY: 2>, <Fate.SPLIT: 3>, <Fate.FAIL: 4>)
    >>> judge_request(400, {"error": {"type": "illegal_argument_exception"}}), judge_request(400, "<html>")
    (<Fate.SPLIT: 3>, <Fate.FAIL: 4>)
    >>> judge_request(403, {"error": {"type": "cluster_block_exception", "reason": "read-only"}})
    <Fate.RETRY: 2>
    """
    error = body.get("error") if isinstance(body, dict) else None
    kind = error.get("type") if isinstance(error, dict) else None
    if status == 200:
        return Fate.READ
    if status in (0, 408, 429) or status >= 500 or kind in _PASSING:
        return Fate.RETRY
    if kind == _OTHER_SERVER:
        return Fate.FAIL
    split = status == 413 or (status == 400 and kind is not None)
    return Fate.SPLIT if split else Fate.FAIL


def error_in(answer: Any) -> str:
    """The error in an answer, or in an item of one, with its root; in at most 2,000 characters.

    >>> error_in({"error": {"type": "document_parsing_exception", "reason": "[1:7] failed to parse",
    ...     "caused_by": {"type": "number_format_exception", "reason": "For input string: x"}}})
    'document_parsing_exception: [1:7] failed to parse; For input string: x'
    """
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        if isinstance(error, str):
            return error[:2_000]
        # What stands between may echo what it was sent, with its key: it is not told.
        size = f"; what came, {len(str(answer)):,} characters, is not Elasticsearch's own"
        return f"no reason given{size if answer else ''}"
    text, root = f"{error.get('type')}: {error.get('reason')}", error
    while isinstance(root.get("caused_by"), dict):
        root = root["caused_by"]
    reason = str(root.get("reason"))
    return (text if reason in text else f"{text}; {reason}")[:2_000]
