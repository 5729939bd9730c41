"""The pipeline options with which each runner runs a job; a user's own come last and win."""

import os
import shutil
from collections.abc import Mapping, Sequence


class RunnerError(Exception):
    """A runner can't be used here: why, and the remedy."""


def direct() -> list[str]:
    # By its full name: "DirectRunner" would choose Prism, and fetch it, for some graphs.
    return ["--runner=apache_beam.runners.portability.fn_api_runner.fn_runner.FnApiRunner"]


def prism(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Prism is one program, which ``VELOCITY_PRISM`` or the search path names."""
    location = environment.get("VELOCITY_PRISM") or shutil.which("prism")
    if not location:
        raise RunnerError(
            "no prism found: install it with "
            "`go install github.com/apache/beam/sdks/v2/go/cmd/prism@v2.77.0`, "
            "or set VELOCITY_PRISM to where it is"
        )
    return [
        "--runner=PrismRunner",
        f"--prism_location={location}",
        "--environment_type=LOOPBACK",
    ]


def options_for(runner: str, own: Sequence[str]) -> list[str]:
    """The options of the direct runner or Prism, then the user's own; Flink's are in ``flink``."""
    match runner:
        case "direct":
            return [*direct(), *own]
        case "prism":
            return [*prism(), *own]
    raise RunnerError(f"{runner!r} is no runner of this kind: give direct or prism")
