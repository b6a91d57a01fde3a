"""`kdmri-edge archive`: a DICOM archive, and what waits for it."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import click

from kdmri_edge.commands.command import Group
from kdmri_edge.commands.options import (
    archive_of,
    calling_option,
    json_option,
    queue_option,
    tls_options,
)
from kdmri_edge.errors import ArchiveError
from kdmri_edge.utils.console import print_result, tell

__all__ = ["archive"]


@click.group(cls=Group)
def archive() -> None:
    """Ask a DICOM archive whether it is there; list, or send, what waits for it.

    Objects that `run --send` and `serve --send` could not deliver wait in a folder, the queue,
    until the archive confirms them. What an archive refused is kept there as well, with the reason.
    """


@archive.command()
@click.argument("address", metavar="AET@HOST:PORT")
@calling_option
@tls_options
@json_option()
def echo(
    address: str,
    calling: str,
    as_json: bool,
    **encryption: Any,
) -> None:
    """Ask an archive whether it is there and takes us (C-ECHO).

    \b
    Examples:
      kdmri-edge archive echo PACS@10.0.0.5:104
      kdmri-edge archive echo PACS@pacs.example:2762 --tls-ca hospital.pem
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.archive.transfer import echo as ask

    there = archive_of(address, calling, **encryption)
    seconds = ask(there)
    if as_json:
        print_result(json.dumps({"archive": there.name, "calling": calling, "seconds": seconds}))
        return
    tell(f"{there.name} is there and takes {calling} ({1e3 * seconds:.0f} ms).")


@archive.command("list")
@queue_option
@json_option()
def list_(queue: Path | None, as_json: bool) -> None:
    """List what waits, and what was refused, by archive.

    \b
    Examples:
      kdmri-edge archive list
      kdmri-edge archive list --queue /var/lib/kdmri-edge/archive --json
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.archive.queue import ArchiveQueue

    waiting = ArchiveQueue(queue)
    found: list[dict[str, Any]] = []
    for line in waiting.lines():
        state, now = line.state, time.time()
        found.append(
            {
                **line.archive.to_dict(),
                "waiting": len(line.waiting()),
                "attempts": state.attempts,
                "reason": state.reason,
                "next_in_s": max(state.next_s - now, 0.0) if state.attempts else 0.0,
                "refused": [{"file": str(one.file), "reason": one.reason}
                            for one in line.refused()],
            }
        )  # fmt: skip
    if as_json:
        print_result(json.dumps(found, indent=2))
        return
    if not found:
        tell(f"Nothing was ever queued in {waiting.folder}.")
    for one in found:
        tried = f"; {one['attempts']} attempt(s) failed: {one['reason']}" if one["attempts"] else ""
        tell(f"{one['archive']}: {one['waiting']} object(s) waiting{tried}")
        for held in one["refused"]:
            tell(f"  refused: {held['file']}: {held['reason']}")


@archive.command()
@click.argument("address", metavar="[AET@HOST:PORT]", required=False)
@queue_option
@click.option("--refused", is_flag=True, help="Send again what an archive refused.")
@json_option()
def send(address: str | None, queue: Path | None, refused: bool, as_json: bool) -> int:
    """Send what waits, to one archive or to all, without waiting for the next attempt.

    The exit code is 1 where something is left.

    \b
    Examples:
      kdmri-edge archive send
      kdmri-edge archive send PACS@10.0.0.5:104 --refused
    """  # noqa: D301 - click wants the backspace itself
    from kdmri_edge.archive.address import parse_address
    from kdmri_edge.archive.outgoing import sentence
    from kdmri_edge.archive.queue import ArchiveQueue
    from kdmri_edge.archive.transfer import deliver, require_archive

    require_archive()
    waiting = ArchiveQueue(queue)
    named = None if address is None else parse_address(address).name
    lines = [line for line in waiting.lines() if named in (None, line.archive.name)]
    if named is not None and not lines:
        raise ArchiveError(
            f"Nothing was ever queued for {named} in {waiting.folder}.",
            "`kdmri-edge archive list` lists the archives.",
        )
    results = []
    if lines:
        with waiting.sending(wait_s=0.3) as ours:
            if not ours:
                raise ArchiveError(
                    f"Another process sends {waiting.folder}.",
                    "It sends all of it; look again with `kdmri-edge archive list`.",
                )
            for line in lines:
                if refused:
                    line.again()
                done = deliver(line)
                results.append({"archive": line.archive.name, **dataclasses.asdict(done)})
                if not as_json:
                    tell(sentence(line.archive, done))
    if as_json:
        print_result(json.dumps(results, indent=2))
    elif not results:
        tell("Nothing waits.")
    return int(any(one["waiting"] or one["refused"] for one in results))
