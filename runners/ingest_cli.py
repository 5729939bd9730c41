"""The commands of ``velocity ingest``: events of Amazon SNS into Kafka, pushed or from a queue."""

import json
import os
import re
import signal
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from velocity.io.kafka_config import KafkaConfig
from velocity.io.sns import Routes, routes_of
from velocity.io.sns_delivery import Delivery
from velocity.pipelines.job import VARIABLE
from velocity.runners.exit_codes import codes
from velocity.runners.terminal import complain

EXIT_CODES: Final = codes(_0="told to stop (SIGTERM, Ctrl-C)")

ingest_app = typer.Typer(
    name="ingest",
    help="Events of Amazon SNS into Kafka: docs/ingest.md.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
)

Servers = Annotated[str, typer.Option(metavar="HOST:PORT", help="The Kafka to write to.")]
RouteOption = Annotated[
    list[str],
    typer.Option(metavar="ARN=TOPIC", help="An SNS topic and its Kafka topic; may be repeated."),
]
Key = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Of the message's key in its JSON: order.id."),
]
JsonLines = Annotated[
    bool,
    typer.Option(
        "--json",
        help="Print JSON lines for other programs: as it begins, and what came at the end.",
    ),
]
Options = Annotated[
    list[str] | None,
    typer.Option(
        "--kafka-option",
        metavar="NAME=VALUE",
        help="One of librdkafka's; may be repeated. Secrets as 'sasl.password=${VARIABLE}' or"
        " sasl.password=@FILE: other users of the machine see what stands here.",
    ),
]


@ingest_app.command(
    epilog="Example: velocity ingest sns --listen 0.0.0.0:8443 --tls-certificate cert.pem"
    " --tls-key key.pem --bootstrap-servers kafka:9092 --key transaction_id"
    f" --route arn:aws:sns:ap-southeast-1:123456789012:orders=pharmacy.events. {EXIT_CODES}"
)
def sns(
    route: RouteOption,
    bootstrap_servers: Servers = "127.0.0.1:9092",
    listen: Annotated[str, typer.Option(metavar="HOST:PORT")] = "127.0.0.1:8080",
    key: Key = None,
    kafka_option: Options = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM; without, something before it must do HTTPS.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM, of --tls-certificate.")] = None,
    signing_certificates: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="SNS's own certificates, by their names, where AWS is out of reach."
        ),
    ] = None,
    as_json: JsonLines = False,
) -> None:
    """Serve an HTTPS endpoint that SNS topics push to.

    Subscriptions of the topics in the table are confirmed, signatures verified. A notification is
    answered 200 once Kafka has acknowledged it. `GET /health` shows counts.
    """
    from velocity.io.sns_http import SnsServer, Subscriber
    from velocity.io.sns_signature import Verifier

    host, _, port = listen.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise typer.BadParameter("HOST:PORT is wanted", param_hint="--listen")
    if (tls_certificate is None) != (tls_key is None):
        raise typer.BadParameter("--tls-certificate and --tls-key go together")
    tls = None
    if tls_certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(tls_certificate, tls_key)
    subscriber = Subscriber(
        _routes(route, key),
        _delivery(bootstrap_servers, kafka_option),
        Verifier(folder=signing_certificates),
    )
    with (
        SnsServer((host, int(port)), subscriber, tls) as server,
        _counted(subscriber.counts, as_json),
    ):
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1})
        told = _until_told()  # before anybody hears that it listens
        thread.start()
        scheme = "https" if tls else "http"
        url = f"{scheme}://{host}:{server.server_address[1]}"
        _say("listening", url, f"listening on {url}", as_json)
        try:
            told.wait()
        finally:
            server.shutdown()
            thread.join()


@ingest_app.command(
    epilog="Example: velocity ingest sqs --queue https://sqs.ap-southeast-1.amazonaws.com/123/orders"
    " --bootstrap-servers kafka:9092 --route"
    f" arn:aws:sns:ap-southeast-1:123456789012:orders=pharmacy.events. {EXIT_CODES}"
)
def sqs(
    queue: Annotated[str, typer.Option(metavar="URL", help="The queue to empty.")],
    route: RouteOption,
    bootstrap_servers: Servers = "127.0.0.1:9092",
    key: Key = None,
    kafka_option: Options = None,
    threads: Annotated[int, typer.Option(min=1, max=64, help="That poll the queue.")] = 4,
    as_json: JsonLines = False,
) -> None:
    """Move messages of an SQS queue, which subscribes to SNS topics, to Kafka.

    Each is deleted once Kafka has acknowledged it. AWS is reached as boto3 is configured (region,
    credentials, `AWS_ENDPOINT_URL`).
    """
    import boto3

    from velocity.io.sqs import SqsConsumer

    routes, delivery = _routes(route, key), _delivery(bootstrap_servers, kafka_option)
    consumer = SqsConsumer(boto3.client("sqs"), queue, routes, delivery)
    stop = _until_told()
    with _counted(consumer.counts, as_json), ThreadPoolExecutor(threads, "poller") as pool:
        pollers = [pool.submit(consumer.run, stop) for _ in range(threads)]
        for poller in pollers:
            poller.add_done_callback(lambda _: stop.set())  # one that fails ends all
        _say("emptying", queue, f"emptying {queue}", as_json)
        for poller in pollers:
            poller.result()


def _routes(pairs: list[str], key: str | None) -> Routes:
    try:
        return routes_of(pairs, key)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--route") from error


def _delivery(servers: str, pairs: list[str] | None) -> Delivery:
    options: dict[str, Any] = {}
    for pair in pairs or ():
        name, equals, value = pair.partition("=")
        if not equals:
            raise typer.BadParameter(f"NAME=VALUE is wanted: {name}", param_hint="--kafka-option")
        options[name] = kafka_option(name, value, os.environ)
        if options[name] == value and _SECRET.search(name):
            complain(
                "ingest",
                f"--kafka-option {name}: everyone on this machine sees it; write '{name}=${{VARIABLE}}'"
                f" or {name}=@FILE",
            )
    return Delivery(KafkaConfig(servers, options), timedelta(seconds=10))


_SECRET: Final = re.compile(r"password|secret|\.pem$|sasl\.oauthbearer\.config|token(?!\.endpoint)")
"""In names of options whose values are secrets."""


def kafka_option(name: str, value: str, environ: Mapping[str, str]) -> str:
    """The value of an option: ``${VARIABLE}`` as in job files, ``@FILE`` for what a file holds.

    Raises ``typer.BadParameter``, which names the option and never a value.

    >>> kafka_option("sasl.password", "${PASSWORD}", {"PASSWORD": "hush"})
    'hush'
    """
    if value.startswith("@"):
        try:
            return Path(value[1:]).read_text("utf-8").removesuffix("\n")
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or "it is no text in UTF-8"
            text = f"{name}: {value[1:]} can't be read: {cause}"
            raise typer.BadParameter(text, param_hint="--kafka-option") from error

    def known(match: re.Match[str]) -> str:
        if match[1] not in environ:
            text = f"{name}: the environment variable {match[1]} is not set"
            raise typer.BadParameter(text, param_hint="--kafka-option")
        return environ[match[1]]

    return VARIABLE.sub(known, value)


def _say(what: str, where: str, text: str, as_json: bool) -> None:
    print(json.dumps({what: where}) if as_json else text, flush=True)


def _until_told() -> threading.Event:
    """Is set by SIGTERM and Ctrl-C: what is at work is finished, and no more begun."""
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())
    return told


@contextmanager
def _counted(counts: Counter[str], as_json: bool) -> Iterator[None]:
    try:
        yield
    finally:
        if as_json:
            print(json.dumps({"counts": dict(counts)}), flush=True)
        told = ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items()))
        print(told or "nothing came", file=sys.stderr)
