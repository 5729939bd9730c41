"""Events that SNS wrapped: the envelope of a notification taken off, a batch at a time."""

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from velocity.io.records import Cause, Failure, Texts
from velocity.transforms.fields import Field
from velocity.transforms.json_diagnosis import MISSING
from velocity.transforms.json_reader import JsonReader

_FIELDS: Final = {name: Field("string") for name in ("Type", "TopicArn", "Message")}


@dataclass(frozen=True)
class SnsEnvelope:
    """A format (``velocity.io.records.Format``): JSON objects, in the envelopes of SNS or bare.

    A subscription with raw message delivery sends an event bare. Which way a message came is seen
    of itself: an object with a ``TopicArn`` is an envelope. One that is no notification (SNS also
    sends confirmations of a subscription), or has no text as its ``Message``, fails as
    ``wrong_envelope``; what a ``Message`` holds, or what came bare, is the decoder's to judge.
    Source: https://docs.aws.amazon.com/sns/latest/dg/sns-message-and-json-formats.html

    >>> from velocity.io.records import messages
    >>> bare = b'{"city": "Solo"}'
    >>> values = [b'{"Type": "Notification", "TopicArn": "a", "Message": "{}"}', bare]
    >>> SnsEnvelope().texts(messages(values)).texts.to_pylist()
    [b'{}', b'{"city": "Solo"}']
    """

    max_bytes: int = 10 * 1024 * 1024

    def texts(self, messages: pa.RecordBatch) -> Texts:
        values = messages["value"]
        (kind, topic, message), kept, unread = self._reader.read(values)
        wrapped = pc.is_valid(topic)
        whole = pc.and_(pc.fill_null(pc.equal(kind, "Notification"), False), pc.is_valid(message))
        failures = []
        for row in np.flatnonzero(pc.and_not(wrapped, whole).to_numpy(False)).tolist():
            error = f"field Message: {MISSING}"
            if kind[row].as_py() != "Notification":
                error = f"field Type: {kind[row].as_py()!r}, which is not 'Notification'"
            failures.append(Failure(int(kept[row]), Cause.WRONG_ENVELOPE, error))
        for position, cause, error in unread:
            likely = cause in (Cause.WRONG_TYPE, Cause.INVALID_JSON)
            if likely and _is_envelope(values[position].as_py()):
                failures.append(Failure(position, Cause.WRONG_ENVELOPE, error))
        mask = np.zeros(len(values), bool)
        mask[kept[wrapped.to_numpy(False)]] = True
        inner = pc.if_else(whole, message, None).cast(pa.binary()).filter(wrapped)
        texts = inner if mask.all() else pc.replace_with_mask(values, mask, inner)
        if failures:
            mask[:] = True
            mask[[failure.position for failure in failures]] = False
            texts = pc.if_else(mask, texts, None)
        return Texts(texts, failures)

    @cached_property
    def _reader(self) -> JsonReader:
        return JsonReader(_FIELDS, "Message", self.max_bytes)


def _is_envelope(value: bytes) -> bool:
    """Whether a text that the reader refused is an envelope all the same."""
    try:
        document = json.loads(value.decode())
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and isinstance(document.get("TopicArn"), str)
