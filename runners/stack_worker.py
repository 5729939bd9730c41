"""One Python worker: asks the runner for the job's options and files, and becomes Beam's worker.

Beam's containers do this in a program of Go (``sdks/python/container/boot.go``).
"""

import argparse
import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
from apache_beam.portability.api import (
    beam_artifact_api_pb2,
    beam_artifact_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from google.protobuf import json_format, text_format

from velocity.runners.leave import run_and_leave
from velocity.runners.logs import Discreet, configure, guard, wanted

PR_SET_PDEATHSIG: Final = 1
"""prctl(2): the signal that a process gets when its parent ends."""

STAGING: Final = "beam:artifact:role:staging_to:v1"
EXTRA_PACKAGES: Final = "extra_packages.txt"
"""What Beam's stager calls the list of ``--extra_package`` files."""
WORKFLOW: Final = "workflow.tar.gz"
"""What it calls the source distribution made of ``--setup_file``."""
REQUIREMENTS: Final = "requirements.txt"


def staged_names(dependencies: Iterable[Any]) -> dict[str, Any]:
    """The artifacts that carry a name to stage under, by that name.

    Raises ``ValueError`` for a name that would lie outside the staging folder.
    """
    named = {}
    for artifact in dependencies:
        if artifact.role_urn == STAGING:
            payload = beam_runner_api_pb2.ArtifactStagingToRolePayload()
            payload.ParseFromString(artifact.role_payload)
            name = payload.staged_name
            if name != Path(name).name or name in ("", ".", ".."):
                raise ValueError(f"a job may not stage a file as {name!r}")
            named[name] = artifact
    return named


def packages(staged: Mapping[str, Path]) -> list[Path]:
    """The staged files that pip shall install, in order.

    >>> folder = Path("/staged")
    >>> packages({"workflow.tar.gz": folder / "workflow.tar.gz", "main.pickle": folder / "m"})
    [PosixPath('/staged/workflow.tar.gz')]
    """
    found = []
    if EXTRA_PACKAGES in staged:
        names = staged[EXTRA_PACKAGES].read_text().split()
        found += [staged[name] for name in names]
    if WORKFLOW in staged:
        found.append(staged[WORKFLOW])
    return found


def retrieve(
    endpoint: str, worker: str, dependencies: Sequence[Any], folder: Path
) -> dict[str, Path]:
    """Copies the job's staged files into a folder, and returns them by name."""
    files = {}
    metadata = [("worker_id", worker)]
    with grpc.insecure_channel(endpoint) as channel:
        service = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(channel)
        for name, artifact in staged_names(dependencies).items():
            question = beam_artifact_api_pb2.ResolveArtifactsRequest(artifacts=[artifact])
            (resolved,) = service.ResolveArtifacts(question, metadata=metadata).replacements
            files[name] = folder / name
            with files[name].open("wb") as output:
                request = beam_artifact_api_pb2.GetArtifactRequest(artifact=resolved)
                for chunk in service.GetArtifact(request, metadata=metadata):
                    output.write(chunk.data)
    return files


def provision(endpoint: str, worker: str) -> Any:
    """The runner's ``ProvisionInfo``: the job's options, its files, the runner's abilities."""
    with grpc.insecure_channel(endpoint) as channel:
        service = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        return service.GetProvisionInfo(request, metadata=[("worker_id", worker)]).info


def install(staged: Mapping[str, Path], into: Path) -> None:
    """Installs a job's own packages where only this worker finds them.

    Their dependencies are not installed, as Beam and Velocity are among them and are here:
    other ones belong in ``--requirements_file``, or into the environment of the stack.
    """
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(into)]
    if REQUIREMENTS in staged:
        subprocess.run([*pip, "--requirement", staged[REQUIREMENTS]], check=True)
    if own := packages(staged):
        subprocess.run([*pip, "--no-deps", "--upgrade", *own], check=True)


def descriptor(url: str) -> str:
    """An endpoint as Beam's worker reads it from its environment."""
    return str(text_format.MessageToString(endpoints_pb2.ApiServiceDescriptor(url=url)))


def environment(
    *, worker: str, control: str, logging: str, info: Any, staged: Path, site: Path
) -> dict[str, str]:
    """The variables that Beam's worker takes its orders from."""
    paths = [str(site), os.environ.get("PYTHONPATH", "")]
    return {
        "WORKER_ID": worker,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "CONTROL_API_SERVICE_DESCRIPTOR": descriptor(control),
        "LOGGING_API_SERVICE_DESCRIPTOR": descriptor(logging),
        "SEMI_PERSISTENT_DIRECTORY": str(staged.parent),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


def job_name(info: Any) -> str:
    """The name that a job was submitted under."""
    options = json_format.MessageToDict(info.pipeline_options)
    return str(options.get("beam:option:job_name:v1", ""))


def die_with(pool: int) -> None:
    """Makes the system kill this process when the pool dies, however that is (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != pool:  # it died before we asked
        sys.exit("the pool that started this worker has ended")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="A Python worker for Beam on Flink.")
    parser.add_argument("--pool", type=int, required=True)
    for option in ("--id", "--control", "--logging", "--artifacts", "--provision"):
        parser.add_argument(option, required=True)
    parser.add_argument("--metrics", type=Path, help="The folder to count into.")
    parser.add_argument("--quiet", action="store_true", help="Write warnings and errors alone.")
    given = parser.parse_args(arguments)
    die_with(given.pool)
    info = provision(given.provision, given.id)
    with tempfile.TemporaryDirectory(prefix="velocity-worker-") as folder:
        staged, site = Path(folder) / "staged", Path(folder) / "site"
        staged.mkdir()
        site.mkdir()
        install(retrieve(given.artifacts, given.id, info.dependencies, staged), site)
        variables = environment(
            worker=given.id,
            control=given.control,
            logging=given.logging,
            info=info,
            staged=staged,
            site=site,
        )
        os.environ.update(variables)
        sys.path.insert(0, str(site))
        # Only now: Beam reads the options of this process as it is imported.
        from apache_beam.runners.worker import sdk_worker_main

        from velocity.io.metrics import mirror
        from velocity.io.prometheus import open_mirror
        from velocity.runners.stack_worker_states import bound_states

        bound_states()
        if given.metrics is not None:
            mirror(open_mirror(given.metrics, job_name(info)))
        _run(sdk_worker_main, job_name(info), logging.WARNING if given.quiet else logging.NOTSET)
    return 0


def _run(beam: Any, job: str, level: int) -> None:
    """As ``sdk_worker_main.main``, its records such as all of Velocity's are."""
    configure(wanted(), job=job, level=level)
    if level:
        # They warn of each option that is the runner's, and of a session that nobody has saved.
        for name in (beam.__name__, "apache_beam.options.pipeline_options"):
            logging.getLogger(name).setLevel(logging.ERROR)
    # Beam tells all of the job's options before its handler is in our hands.
    logging.getLogger(beam.__name__).addFilter(Discreet())
    handler, harness, _ = beam.create_harness(os.environ)
    guard(handler)
    try:
        harness.run()
    finally:
        handler.close()


if __name__ == "__main__":
    run_and_leave(lambda: sys.exit(main()))
