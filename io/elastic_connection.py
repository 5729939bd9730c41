"""Where Elasticsearch is, how it is known to be the right one, and who asks."""

import base64
import binascii
import re
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from elastic_transport import TlsError, Transport
from elasticsearch import Elasticsearch, SerializationError, TransportError

REQUEST_TIMEOUT: Final = timedelta(seconds=30)
_SHA256: Final = re.compile(r"[0-9a-fA-F]{64}")


@dataclass(frozen=True, slots=True)
class Connection:
    """Where Elasticsearch is and who asks; the secrets show in no ``repr``.

    Of several hosts each call takes the next that answered its last call. ``ca_certs`` is a file
    with the certificate of the authority that signed the server's; ``fingerprint`` the SHA-256 of
    the server's own certificate or of one that signed it, in hexadecimal.

    >>> Connection(("http://127.0.0.1:9200",), api_key="c2VjcmV0")
    Connection(hosts=('http://127.0.0.1:9200',), cloud_id=None, ca_certs=None, fingerprint=None, \
request_timeout=datetime.timedelta(seconds=30))
    """

    hosts: tuple[str, ...] = ()
    cloud_id: str | None = None
    """Names a deployment of Elastic Cloud; in place of ``hosts``."""
    api_key: str | None = field(default=None, repr=False)
    basic_auth: tuple[str, str] | None = field(default=None, repr=False)
    ca_certs: str | None = None
    fingerprint: str | None = None
    request_timeout: timedelta = REQUEST_TIMEOUT

    def __post_init__(self) -> None:
        if bool(self.hosts) == bool(self.cloud_id):
            raise ValueError("hosts: give URLs such as http://127.0.0.1:9200, or else a cloud_id")
        for host in self.hosts:
            # No message repeats the URL: it may hold a password.
            url = urlsplit(host)
            if url.scheme not in ("http", "https") or not url.hostname:
                raise ValueError("hosts: each is a URL such as https://elastic.internal:9200")
            if url.username or url.password:
                raise ValueError(
                    "hosts: give user and password as basic_auth (in a job: username and password), not in the URL"
                )
        if self.cloud_id and not _names_a_host(self.cloud_id):
            raise ValueError("cloud_id: copy it whole from the deployment's page: NAME:BASE64")
        if self.api_key and self.basic_auth:
            raise ValueError("api_key and basic_auth exclude each other: give one")
        if self.ca_certs and self.fingerprint:
            raise ValueError("ca_certs and fingerprint exclude each other: give one")
        if self.fingerprint and not _SHA256.fullmatch(self.fingerprint.replace(":", "")):
            raise ValueError(
                "fingerprint: the SHA-256 of a certificate is wanted, 64 hexadecimal digits: "
                "openssl x509 -noout -fingerprint -sha256 -in http_ca.crt"
            )
        if (self.ca_certs or self.fingerprint) and any(
            urlsplit(host).scheme == "http" for host in self.hosts
        ):
            raise ValueError("hosts: ca_certs and fingerprint are for https, and one is http")
        if self.request_timeout <= timedelta():
            raise ValueError(f"request_timeout is {self.request_timeout}: give more than zero")

    def open(self) -> Elasticsearch:
        """A client that leaves every retry to us; it connects when first used."""
        tls: dict[str, Any] = {}
        if self.ca_certs:
            tls["ca_certs"] = self.ca_certs
        if self.fingerprint:
            tls["ssl_assert_fingerprint"] = self.fingerprint
        return Elasticsearch(
            list(self.hosts) or None,
            cloud_id=self.cloud_id,
            api_key=self.api_key,
            basic_auth=self.basic_auth,
            request_timeout=self.request_timeout.total_seconds(),
            max_retries=0,
            transport_class=_Version8,
            **tls,
        )


class _Version8(Transport):
    """Speaks as clients of version 8 do, which servers of 8 and 9 answer; the client of 9 would
    have a server of 8 refuse each call."""

    def perform_request(self, *given: Any, headers: Any = None, **options: Any) -> Any:
        spoken = {
            name: value.replace("compatible-with=9", "compatible-with=8")
            for name, value in (headers or {}).items()
        }
        return super().perform_request(*given, headers=spoken, **options)


def not_reached(error: TransportError | SerializationError) -> str:
    """What kept an answer away, with what the network or TLS said; the remedy if it was TLS."""
    parts = [str(error.message), *(str(cause) for cause in error.errors)]
    text = ": ".join(part for i, part in enumerate(parts) if part not in "".join(parts[:i]))
    if isinstance(error, TlsError):
        text += "; ca_certs or fingerprint say which certificate is the right one"
    return text[:2_000]


def _names_a_host(cloud_id: str) -> bool:
    """Source: https://www.elastic.co/docs/deploy-manage/deploy/elastic-cloud/find-cloud-id"""
    try:
        return b"$" in base64.b64decode(cloud_id.rpartition(":")[2], validate=True)
    except (binascii.Error, ValueError):
        return False
