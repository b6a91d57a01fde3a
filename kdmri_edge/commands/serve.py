"""`kdmri-edge serve`."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import (
    RowChoice,
    archive_of,
    archive_options,
    key_option,
    orientation_option,
)
from kdmri_edge.data.orientation import Orientation

__all__ = ["serve"]


@click.command(cls=Command)
@click.argument(
    "networks",
    type=click.Path(path_type=Path),
    nargs=-1,
    required=True,
    metavar="FOLDER|BUNDLE...",
)
@click.option(
    "--rules",
    type=click.Path(path_type=Path),
    metavar="FILE.toml",
    help="Which scans go to which of many bundles, whose key has signed them, and what becomes of"
    " slices outside the scope [serve.toml in the folder; else what fits].",
)
@click.option(
    "--loaded",
    default=4,
    show_default=True,
    type=click.IntRange(min=1),
    help="Networks of many bundles that are kept in memory at once.",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; the default takes clients of this machine alone.",
)
@click.option(
    "--port",
    default=9002,
    show_default=True,
    type=click.IntRange(0, 65535),
    help="Port to listen at; 0 takes a free one, which the log names.",
)
@click.option(
    "--config",
    "configs",
    multiple=True,
    metavar="NAME",
    help="Configuration names to answer to [kdmri-edge, openrecon]; any other is an error.",
)
@click.option(
    "--default-config",
    metavar="NAME",
    help="Configuration that names which the server does not know stand for [none: an error].",
)
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write every scan there as an MRD file, without identification, and answer to the"
    " configuration savedataonly, which records and sends no image.",
)
@click.option(
    "--record-limit",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="GiB that recordings may take; the oldest are deleted where new ones need the room.",
)
@click.option(
    "--record-identified",
    is_flag=True,
    help="Keep in recordings what tells whose a scan is.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["float", "int16"]),
    default="float",
    show_default=True,
    help="Pixels of the images: in the unit of k-space, or whole"
    " numbers, each image with its RescaleSlope.",
)
@click.option(
    "--interpolate/--no-interpolate",
    default=True,
    show_default=True,
    help="Follow headers that ask for images of a finer matrix than is encoded.",
)
@click.option(
    "--pass-images",
    is_flag=True,
    help="Send images that no network takes back as they came, flagged.",
)
@click.option(
    "--out-of-scope",
    type=click.Choice(["flag", "zero-filled", "refuse"]),
    envvar="KDMRI_OUT_OF_SCOPE",
    show_envvar=True,
    help="What becomes of a slice that is unlike those that its network is made for: the image is"
    " flagged, the zero-filled one goes back, or none but the reason [out_of_scope of serve.toml,"
    " else flag].",
)
@click.option(
    "--unknown-scope",
    type=click.Choice(["flag", "zero-filled", "refuse"]),
    envvar="KDMRI_UNKNOWN_SCOPE",
    show_envvar=True,
    help="The same for a slice of which it is not known: its network has no calibration, or one for"
    " another mask, or the slice is blank [unknown_scope of serve.toml, else what becomes of slices"
    " outside].",
)
@click.option(
    "--deadline",
    default=5.0,
    show_default=True,
    type=click.FloatRange(min=0.01),
    help="Seconds from a slice's last line until its zero-filled image is sent.",
)
@click.option(
    "--reuse-coils",
    is_flag=True,
    help="Estimate coil sensitivities once at each place, and use them for all repetitions,"
    " contrasts, phases and sets of a scan [estimated for each].",
)
@click.option(
    "--sessions",
    default=8,
    show_default=True,
    envvar="KDMRI_SESSIONS",
    show_envvar=True,
    type=click.IntRange(1, 256),
    help="Scans at once; more are told to try again later.",
)
@click.option(
    "--opening",
    default=10.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds for a client to send its configuration and header.",
)
@click.option(
    "--idle",
    default=600.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds of silence after which a scan is given up.",
)
@click.option(
    "--stall",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds for a client to take one message, before its scan is given up.",
)
@click.option(
    "--slice-memory",
    envvar="KDMRI_SLICE_MEMORY",
    show_envvar=True,
    default=256,
    show_default=True,
    type=click.IntRange(1),
    help="MiB that the k-space of one slice may take, all coils; scans of larger ones are refused.",
)
@click.option(
    "--scan-memory",
    envvar="KDMRI_SCAN_MEMORY",
    show_envvar=True,
    default=2048,
    show_default=True,
    type=click.IntRange(1),
    help="MiB of lines that one scan may have waiting for the rest of their slices.",
)
@click.option(
    "--metrics-port",
    envvar="KDMRI_METRICS_PORT",
    show_envvar=True,
    type=click.IntRange(1, 65535),
    help="Serve Prometheus metrics (/metrics) and a health check that reconstructs (/healthz)"
    " there, at the same address.",
)
@click.option(
    "--matrix",
    type=click.Choice(["any"]),
    help="Take scans of any matrix and line mask; see `kdmri-edge run`.",
)
@click.option(
    "--backend",
    type=RowChoice("kdmri_edge.runtime.backends.registry:BACKENDS", "auto"),
    default="auto",
    show_default=True,
    help="Runtime; see `kdmri-edge run`.",
)
@click.option("--precision", help="Arithmetic, where the runtime has a choice.")
@click.option(
    "--threads",
    envvar="KDMRI_THREADS",
    show_envvar=True,
    type=click.IntRange(min=1),
    help="CPU threads [the runtime's choice].",
)
@orientation_option
@key_option
@archive_options
@click.option("--quiet", is_flag=True, help="Log warnings and errors alone.")
def serve(
    networks: tuple[Path, ...],
    rules: Path | None,
    loaded: int,
    host: str,
    port: int,
    configs: tuple[str, ...],
    default_config: str | None,
    record: Path | None,
    record_limit: float,
    record_identified: bool,
    form: str,
    interpolate: bool,
    pass_images: bool,
    out_of_scope: str | None,
    unknown_scope: str | None,
    deadline: float,
    reuse_coils: bool,
    sessions: int,
    opening: float,
    idle: float,
    stall: float,
    slice_memory: int,
    scan_memory: int,
    metrics_port: int | None,
    matrix: str | None,
    backend: str,
    precision: str | None,
    threads: int | None,
    orientation: str,
    keys: tuple[Path, ...],
    send: str | None,
    queue: Path | None,
    quiet: bool,
    **spoken: Any,
) -> None:
    """Reconstruct a scanner's stream: the MRD protocol of FIRE, OpenRecon and Gadgetron clients.

    Each slice of a Cartesian 2-D scan goes back as soon as its last line has come. Where the
    network cannot be used (another matrix or mask, NaN, a missed deadline, a failure) the
    zero-filled image goes back instead, flagged in its meta attributes, with the reason in text.
    A bundle that was exported with --mask input takes scans of any line mask, one that was exported
    with --matrix any those of any matrix as well; images of scans that its network was not trained
    for say so in their meta attributes. A checkpoint, a run
    or a network of the package is exported first, once, as by `kdmri-edge run`. The server's log is
    one JSON object a line on standard error, without patient data. SIGTERM ends it after the
    running scans, a second one at once.

    Of several bundles, or of those in a folder, each scan gets the one that fits its coils, matrix
    and mask, or that a rule names; which one, and why no other, is said in text, in meta attributes
    and in the log. They are loaded when they are first needed. SIGHUP looks for bundles and rules
    again.

    With --send the images also go to a DICOM archive, a series for each contrast, with what the
    scan's header says of patient and study. What the archive does not take stays in the queue, is
    tried again after growing pauses, and outlives the server. With --record every scan is written
    to a file, which `kdmri-edge send` replays.

    \b
    Examples:
      kdmri-edge serve bundle
      kdmri-edge serve bundles --rules serve.toml
      kdmri-edge serve bundles --key vendor.pub --key hospital.pub
      kdmri-edge serve bundle --host 0.0.0.0 --format int16 --metrics-port 9100
      kdmri-edge serve bundle --send PACS@10.0.0.5:104 --calling EDGE1
      kdmri-edge send scan.h5 -o images.h5
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.archive.queue import ArchiveQueue
    from kdmri_edge.archive.transfer import require_archive
    from kdmri_edge.commands.run import runs_on
    from kdmri_edge.errors import StreamError
    from kdmri_edge.runtime.certificate import Policies, Policy
    from kdmri_edge.runtime.networks import backend_at_hand, where_it_runs
    from kdmri_edge.runtime.pipeline import Pipeline
    from kdmri_edge.utils.extras import require
    from kdmri_edge.utils.keys import public_keys
    from kdmri_edge.utils.threads import slices_at_once

    require("ismrmrd", extra="mrd")
    require("prometheus_client", extra="mrd")
    from kdmri_edge.mrd.format.assembler import Capacity
    from kdmri_edge.mrd.format.parser import Limits
    from kdmri_edge.mrd.server.archiving import Archiving
    from kdmri_edge.mrd.server.networks import (
        ManyNetworks,
        bundles_in,
        many_networks,
        site_of,
        warn_of_scope,
    )
    from kdmri_edge.mrd.server.recording import Recorder
    from kdmri_edge.mrd.server.rules import Site
    from kdmri_edge.mrd.server.server import Server
    from kdmri_edge.mrd.server.settings import DEFAULT_CONFIGS, ServerSettings, check_default
    from kdmri_edge.mrd.server.telemetry import Metrics, log_event, log_to_stderr

    address = None
    if send is not None:
        address = archive_of(send, **spoken)
        require_archive()
    check_default(default_config, configs or DEFAULT_CONFIGS, records=record is not None)
    metrics = Metrics()
    recorder = None
    if record is not None:
        recorder = Recorder(
            record, limit=int(record_limit * 2**30), identified=record_identified, metrics=metrics
        )
    asked = None if backend == "auto" else backend
    free = matrix == "any"
    many = len(networks) > 1 or rules is not None or bool(bundles_in(networks[0]))
    site = site_of(networks, rules) if many else Site()
    trusted = public_keys(keys or site.keys)
    outside, unknown = out_of_scope or site.out_of_scope, unknown_scope or site.unknown_scope
    policies = Policies(
        outside=Policy.FLAG if outside is None else Policy(outside),
        unknown=None if unknown is None else Policy(unknown),
    )
    serving: Pipeline | ManyNetworks
    name = ""
    if many:
        serving = many_networks(
            networks, rules=rules, backend=asked, precision=precision, any_matrix=free,
            threads=threads, loaded=loaded, policies=policies, keys=trusted,
        )  # fmt: skip
    else:
        source, name = where_it_runs(
            networks[0], backend=asked, precision=precision, any_matrix=free,
            signed=bool(trusted),
        )  # fmt: skip
        serving = Pipeline(
            source,
            backend=asked or backend_at_hand(source),
            any_matrix=free,
            precision=precision,
            threads=threads,
            sharing=True,
            out_of_scope=policies.outside,
            unknown_scope=policies.unknown,
            keys=trusted,
        )
        serving.warm_up()
    most, at_once = slice_memory * 2**20, slices_at_once(threads)
    settings = ServerSettings(
        host=host, port=port, format=form, deadline_s=deadline, sessions=sessions,
        opening_s=opening, idle_s=idle, send_s=stall, configs=configs or DEFAULT_CONFIGS,
        orientation=Orientation(orientation), at_once=at_once, in_flight=at_once + 2,
        reuse_coils=reuse_coils,
        default_config=default_config, policies=policies,
        records=recorder is not None, interpolate=interpolate, pass_images=pass_images,
        capacity=Capacity(slice_bytes=most, open_bytes=scan_memory * 2**20),
        limits=Limits(acquisition=min(Limits().acquisition, most), image=max(most // 4, 2**20)),
    )  # fmt: skip
    if metrics_port is not None:
        try:
            metrics.publish(host, metrics_port)
        except OSError as error:
            raise StreamError(
                f"Metrics cannot be served at {host}:{metrics_port} ({error.strerror}).",
                "Choose another --metrics-port.",
            ) from None
    archiving = None
    if address is not None:
        archiving = Archiving(address, ArchiveQueue(queue), metrics=metrics)
    server = Server(serving, settings, metrics, archiving, recorder=recorder, name=name)
    log_to_stderr(quiet=quiet)
    if isinstance(serving, Pipeline):
        reads = serving.reads
        matrices = "any" if reads.free is not None else reads.matrix[0]
        log_event("network", runs=runs_on(serving.session.info), matrix=matrices,
                  mask=reads.mask.name, channels=reads.spec.channels)  # fmt: skip
        warn_of_scope(name or networks[0].name, serving.uncalibrated, policies)
    else:
        log_event("networks", bundles=[one.facts for one in serving.candidates])
    with (
        _signals(server.stop, server.reload if many else None),
        archiving or contextlib.nullcontext(),
    ):
        server.serve()
    if recorder is not None and recorder.unfinished:
        os._exit(1)  # HDF5 would wait at the end for a disk that hangs


@contextlib.contextmanager
def _signals(stop: Callable[[], None], reload: Callable[[], None] | None = None) -> Iterator[None]:
    """Stop at the first SIGTERM or Ctrl-C, end at the second; SIGHUP reloads, and ends nothing."""
    usual = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def first(*_: object) -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)
        stop()

    before = dict(usual)
    for number in usual:
        signal.signal(number, first)
    hangup = getattr(signal, "SIGHUP", None)  # not on Windows
    if hangup is not None:
        answer = signal.SIG_IGN if reload is None else lambda *_: reload()
        before[hangup] = signal.signal(hangup, answer)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
