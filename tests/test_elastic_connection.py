"""Connections to Elasticsearch: TLS by authority or fingerprint, identity, and several hosts."""

import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.elastic_server import Server, serving
from velocity.io.elastic import operation
from velocity.io.elastic_bulk import Bulks, DocumentsUnwritten, Operation, Outcome, Retry, send
from velocity.io.elastic_connection import Connection
from velocity.io.elastic_index import IndexPattern
from velocity.io.records import Document

pytestmark = pytest.mark.embedded

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FAST = Retry(timedelta(milliseconds=1), timedelta(milliseconds=5), timedelta(seconds=60))
ONCE = Retry(*[timedelta(milliseconds=1)] * 3)


def op(id: str) -> Operation:
    document = Document("j", "m", 0, 60_000, {}, {"n": 1}, 1, "late", id)
    return operation(document, IndexPattern("orders"), NOW)


def write(
    connection: Connection, *bulks: list[str], retry: Retry = FAST, jitter: float = 0.5
) -> list[Outcome]:
    with connection.open() as client:
        writer = Bulks(
            partial(send, client), retry, connection.request_timeout, jitter=lambda: jitter
        )
        return [writer.write([op(id_) for id_ in ids]) for ids in bulks]


# -- TLS ------------------------------------------------------------------------------------------


class Authority:
    """Signs certificates, its own among them."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(name, self._key, ca=True)
        self.file = folder / f"{name}.crt"
        self.file.write_bytes(_pem(self.certificate))

    def _sign(self, name: str, key: Any, host: str = "", *, ca: bool = False) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self._name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(days=1))
            .not_valid_after(datetime.now(UTC) + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if host:
            names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self._key, hashes.SHA256())

    def server(self, host: str) -> "Certified":
        """A server's certificate for that address, and its context, which sends the whole chain."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign("elasticsearch", key, host)
        chain, secret = self._folder / f"{host}.crt", self._folder / f"{host}.key"
        chain.write_bytes(_pem(certificate) + _pem(self.certificate))
        secret.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain, secret)
        return Certified(context, fingerprint(certificate))


@dataclass
class Certified:
    context: ssl.SSLContext
    fingerprint: str


def fingerprint(certificate: x509.Certificate) -> str:
    """As openssl prints it."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "authority")


@pytest.fixture
def certified(authority: Authority) -> Certified:
    return authority.server("127.0.0.1")


@pytest.fixture
def server(certified: Certified) -> Iterator[Server]:
    with serving(Server(certified.context)) as server:
        yield server


def test_a_server_is_known_by_the_authority_that_signed_its_certificate(
    server: Server, authority: Authority
) -> None:
    connection = Connection((server.url,), ca_certs=str(authority.file), api_key="a2V5")
    [outcome] = write(connection, ["1", "2"])
    assert outcome.written == 2
    assert server.store.documents.keys() == {"1", "2"}
    assert server.authorization == {"ApiKey a2V5"}


def test_a_server_is_known_by_its_certificates_fingerprint(
    server: Server, certified: Certified
) -> None:
    for written in (certified.fingerprint, certified.fingerprint.replace(":", "").lower()):
        connection = Connection((server.url,), fingerprint=written, basic_auth=("elastic", "hush"))
        write(connection, [written])
    assert len(server.store.documents) == 2
    assert server.authorization == {"Basic ZWxhc3RpYzpodXNo"}


def test_a_server_is_known_by_the_fingerprint_of_the_authority_that_its_chain_ends_with(
    server: Server, authority: Authority
) -> None:
    connection = Connection((server.url,), fingerprint=fingerprint(authority.certificate))
    write(connection, ["1"])
    assert server.store.documents.keys() == {"1"}


def test_a_server_that_is_not_the_right_one_gets_no_document_and_no_secret(
    server: Server, certified: Certified, tmp_path: Path
) -> None:
    other = Authority(tmp_path, "other")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ca_certs": str(other.file)}, "CERTIFICATE_VERIFY_FAILED"),
        ({}, "CERTIFICATE_VERIFY_FAILED"),
        ({"fingerprint": fingerprint(other.certificate)}, "Fingerprints did not match"),
    ]
    for identity, told in cases:
        connection = Connection((server.url,), api_key="a2V5", **identity)
        with pytest.raises(DocumentsUnwritten, match=told):
            write(connection, ["1"], retry=ONCE)
    assert (server.store.sent, server.authorization) == ([], set())


def test_a_certificate_for_another_address_is_refused(authority: Authority) -> None:
    with serving(Server(authority.server("127.0.0.2").context)) as server:
        connection = Connection((server.url,), ca_certs=str(authority.file))
        with pytest.raises(DocumentsUnwritten, match=r"'127.0.0.1' doesn't match '127.0.0.2'"):
            write(connection, ["1"], retry=ONCE)
        assert server.store.sent == []


# -- several hosts --------------------------------------------------------------------------------


def test_with_one_host_down_all_goes_on_with_the_other() -> None:
    with serving(Server()) as gone:
        down = gone.url
    with serving(Server()) as server:
        outcomes = write(Connection((down, server.url)), *([str(i)] for i in range(20)))
        assert server.store.documents.keys() == {str(i) for i in range(20)}
    # A host that failed is left out for a while, not asked again by each bulk.
    assert sum(outcome.retries for outcome in outcomes) < 10


def test_hosts_take_turns_and_one_that_dies_on_the_way_is_left_out() -> None:
    first, second = Server(), Server()
    with serving(second):
        with serving(first), Connection((first.url, second.url)).open() as client:
            writer = Bulks(partial(send, client), FAST, timedelta(seconds=30))
            for i in range(10):
                writer.write([op(str(i))])
            assert min(len(first.store.sent), len(second.store.sent)) == 5
        with Connection((first.url, second.url)).open() as client:
            writer = Bulks(partial(send, client), FAST, timedelta(seconds=30))
            for i in range(10, 20):
                writer.write([op(str(i))])
    assert first.store.documents.keys() | second.store.documents.keys() == {
        str(i) for i in range(20)
    }


def test_calls_are_in_the_words_of_version_8_which_servers_of_8_and_9_understand() -> None:
    with serving(Server()) as server:
        write(Connection((server.url,)), ["1"])
        assert server.spoken == {
            "application/vnd.elasticsearch+json; compatible-with=8",
            "application/vnd.elasticsearch+x-ndjson; compatible-with=8",
        }
