"""Whether a notification is from Amazon SNS: its signature, and the certificate it names."""

import base64
import binascii
import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import requests
from cachetools import TTLCache
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from velocity.io.sns import Notification

_HOST: Final = re.compile(r"sns\.[a-z0-9-]{3,}\.amazonaws\.com(\.cn)?")
_HASHES: Final = {"1": hashes.SHA1, "2": hashes.SHA256}
_SIGNED: Final = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": (
        "Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type",
    ),
}  # fmt: skip
_SIGNED["UnsubscribeConfirmation"] = _SIGNED["SubscriptionConfirmation"]


class Forged(ValueError):
    """A notification that is not proved to be from SNS: why."""


def of_aws(url: str) -> str:
    """A URL of SNS itself, as it is; raises ``Forged`` for any other.

    >>> of_aws("https://sns.eu-west-1.amazonaws.com.evil.example/cert.pem")
    Traceback (most recent call last):
    velocity.io.sns_signature.Forged: not an address of SNS: sns.eu-west-1.amazonaws.com.evil.example
    """
    parts = urlsplit(url)
    if parts.scheme != "https" or not _HOST.fullmatch(parts.netloc):
        raise Forged(f"not an address of SNS: {parts.hostname}")
    return url


def fetch(url: str) -> bytes:
    """What AWS answers to a GET; no redirect is followed, for it might lead elsewhere."""
    answer = requests.get(url, timeout=(5, 10), allow_redirects=False)
    answer.raise_for_status()
    return answer.content


class Verifier:
    """Checks signatures of versions 1 and 2, and that a notification is not older than ``max_age``.

    Certificates are fetched from SNS alone, or read from ``folder`` where a file of the URL's last
    name is there, and remembered for an hour.
    Source: https://docs.aws.amazon.com/sns/latest/dg/sns-verify-signature-of-message.html
    """

    def __init__(
        self,
        *,
        folder: Path | None = None,
        max_age: timedelta = timedelta(hours=1),
        fetch: Callable[[str], bytes] = fetch,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._folder, self._max_age, self._fetch, self._clock = folder, max_age, fetch, clock
        self._keys: TTLCache[str, RSAPublicKey] = TTLCache(32, 3600)
        self._lock = threading.Lock()  # requests come in threads, for which the cache is not made

    def check(self, notification: Notification) -> None:
        """Raises ``Forged``, and what fetching a certificate raises."""
        fields = notification.fields
        signed = _SIGNED.get(notification.type)
        if signed is None:
            raise Forged(f"SNS sends nothing of type {notification.type}")
        hash_ = _HASHES.get(fields.get("SignatureVersion", ""))
        if hash_ is None:
            raise Forged("its SignatureVersion is neither 1 nor 2")
        text = "".join(f"{name}\n{fields[name]}\n" for name in signed if name in fields)
        try:
            signature = base64.b64decode(fields.get("Signature", ""), validate=True)
            self._key(fields.get("SigningCertURL", "")).verify(
                signature, text.encode("utf-8", "surrogatepass"), PKCS1v15(), hash_()
            )
        except (InvalidSignature, binascii.Error):
            raise Forged("its signature is not that of its certificate") from None
        # After the signature: only then the time is known to be SNS's.
        age = self._clock() - notification.timestamp
        if abs(age) > self._max_age:
            raise Forged(f"it is of {notification.timestamp}, and may be a replay")

    def _key(self, url: str) -> RSAPublicKey:
        of_aws(url)
        with self._lock:
            if (known := self._keys.get(url)) is not None:
                return known
        name = urlsplit(url).path.rpartition("/")[2]
        if not name.endswith(".pem"):
            raise Forged(f"no certificate is at {url}")
        local = self._folder / name if self._folder else None
        pem = local.read_bytes() if local and local.is_file() else self._fetch(url)
        try:
            certificate = x509.load_pem_x509_certificate(pem)
        except ValueError as error:
            raise Forged(f"no certificate is at {url}") from error
        now, key = self._clock(), certificate.public_key()
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise Forged(f"the certificate {name} is not valid now")
        if not isinstance(key, RSAPublicKey):
            raise Forged(f"the certificate {name} has no RSA key")
        with self._lock:
            self._keys[url] = key
        return key
