"""`kdmri-edge send`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from kdmri_edge.commands.command import Command
from kdmri_edge.commands.options import file_options, json_option
from kdmri_edge.utils.console import print_result, tell

__all__ = ["send"]


@click.command(cls=Command)
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.h5")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address of the server.")
@click.option(
    "--port",
    default=9002,
    show_default=True,
    type=click.IntRange(1, 65535),
    help="Port of the server.",
)
@click.option(
    "--config", default="kdmri-edge", show_default=True, help="Configuration to ask the server for."
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="OUT.h5",
    help="MRD file for the images that come back.",
)
@click.option(
    "--pace",
    default=0.0,
    show_default=True,
    type=click.FloatRange(min=0),
    help="Milliseconds from one readout to the next, as a scanner would; 0: at once.",
)
@click.option(
    "--timeout",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=0.1),
    help="Seconds for which the server may be silent.",
)
@file_options
@json_option()
def send(
    file: Path,
    host: str,
    port: int,
    config: str,
    output: Path,
    pace: float,
    timeout: float,
    as_json: bool,
) -> None:
    """Send an MRD file's readouts, or images, to a server and write the images that come back.

    The server may be `kdmri-edge serve` or any other that speaks the MRD streaming protocol.

    \b
    Examples:
      kdmri-edge send scan.h5 -o images.h5
      kdmri-edge send scan.h5 -o images.h5 --host scanner --port 9002 --pace 5
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.data.sources import split_dataset
    from kdmri_edge.errors import OutputError, StreamError
    from kdmri_edge.models.foreign import HDF5, UNTOLD, file_kind
    from kdmri_edge.utils.console import progress, say
    from kdmri_edge.utils.extras import require

    require("ismrmrd", extra="mrd")
    from kdmri_edge.mrd.client import BrokenReplyError, send_scan
    from kdmri_edge.mrd.format.hdf5 import write_images
    from kdmri_edge.mrd.format.images import fallback_of, is_unchanged
    from kdmri_edge.mrd.format.replay import read_replay
    from kdmri_edge.utils.files import check_writable

    kind = file_kind(file) if file.is_file() else HDF5
    if kind not in (HDF5, *UNTOLD):
        raise StreamError(f"{file} is {kind}, not an MRD file.", "Give k-space as MRD (.h5).")
    given = read_replay(file)
    source, _ = split_dataset(file)
    if output.exists() and output.samefile(source):
        raise OutputError(f"{output} is the input.", "Choose another --output.")
    check_writable(output.parent)  # found out now, not when the images are there
    trouble = None
    with progress(file.name, given.count) as advance:
        try:
            reply = send_scan(
                given.xml, given.messages, host=host, port=port, config=config, pace_s=pace / 1e3,
                timeout_s=timeout, advance=advance,
            )  # fmt: skip
        except BrokenReplyError as broken:
            reply, trouble = broken.reply, broken
    if reply.images:
        write_images(output, reply.images, given.xml)
    kept = f"{output} holds the {len(reply.images)} image(s) that came." if reply.images else ""
    if trouble is not None:
        raise StreamError(trouble.what, f"{trouble.remedy} {kept}".strip())
    if reply.errors:
        raise StreamError(f"The server ended the scan: {reply.errors[0]}", kept)
    recorded = [text[4:] for text in reply.texts if text.startswith("INF Recorded ")]
    if recorded and not reply.images:  # it was sent to be recorded, and nothing else
        said = {"output": None, "readouts": given.count, "images": 0, "texts": reply.texts}
        print_result(json.dumps(said, indent=2) if as_json else recorded[0])
        return
    if not reply.images:
        remedy = "Look at the server's log."
        if reply.texts:
            remedy = f"The server said: {reply.texts[-1]}"
        raise StreamError("No image came back.", remedy)
    unchanged = sum(map(is_unchanged, reply.images))
    fallbacks = [reason for image in reply.images if (reason := fallback_of(image)) is not None]
    if as_json:
        result = {
            "output": str(output),
            "readouts": given.count,
            "images": len(reply.images),
            "zero_filled": len(fallbacks) - unchanged,
            "unchanged": unchanged,
            "reasons": sorted(set(fallbacks)),
            "texts": reply.texts,
        }
        print_result(json.dumps(result, indent=2))
        return
    for text in reply.texts:
        say(text)
    zero_filled = len(fallbacks) - unchanged
    counted = f", {zero_filled} of them zero-filled" if zero_filled else ""
    counted += f", {unchanged} of them unchanged" if unchanged else ""
    tell(f"{output}: {len(reply.images)} image(s){counted}")
