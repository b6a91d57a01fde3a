"""Archives for the tests, in a process of their own: `python scp.py FOLDER [CERTIFICATE KEY]`.

Each listens at a port of its own and behaves in its own way. What it stores lies in FOLDER/NAME, as
it came; FOLDER/NAME.log has a line for each association. The ports are printed as JSON.
"""

from __future__ import annotations

import itertools
import json
import ssl
import sys
from pathlib import Path
from typing import Any

from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage, SecondaryCaptureImageStorage, Verification

EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
ANSWERS = {
    "good": [0x0000],
    "warns": [0xB000],
    "cannot": [0xC000],
    "full": [0x0000, 0xA700, 0x0000],  # out of resources once
    "implicit": [0x0000],
    "picky": [0x0000],
    "capture": [0x0000],
    "aborts": [None],  # whatever comes
    "tls": [0x0000],
}


def serve(name: str, folder: Path, context: ssl.SSLContext | None) -> int:
    entity = AE(ae_title="ARCHIVE")
    entity.require_called_aet = name == "picky"
    syntaxes = [IMPLICIT] if name == "implicit" else [EXPLICIT, IMPLICIT]
    if name != "capture":
        entity.add_supported_context(MRImageStorage, syntaxes)
    entity.add_supported_context(SecondaryCaptureImageStorage, syntaxes)
    entity.add_supported_context(Verification)
    came = itertools.count()
    (folder / name).mkdir(parents=True)
    log = (folder / name).with_suffix(".log")
    log.touch()

    def associated(event: Any) -> None:
        with log.open("a", encoding="utf-8") as stream:
            stream.write(f"{event.assoc.requestor.ae_title}\n")

    def store(event: Any) -> int:
        answers = ANSWERS[name]
        answer = answers[min(next(came), len(answers) - 1)]
        if answer is None:
            event.assoc.abort()
            return 0xC001
        if answer in (0x0000, 0xB000):
            place = folder / name / f"{event.request.AffectedSOPInstanceUID}.dcm"
            half = place.with_suffix(".half")  # whoever looks meanwhile finds whole files
            half.write_bytes(event.encoded_dataset())
            half.rename(place)
        return answer

    server = entity.start_server(
        ("127.0.0.1", 0),
        block=False,
        ssl_context=context,
        evt_handlers=[(evt.EVT_C_STORE, store), (evt.EVT_ACCEPTED, associated)],
    )
    return int(server.socket.getsockname()[1])


def main() -> None:
    folder, *files = map(Path, sys.argv[1:])
    context = None
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files[0], files[1])
    names = [name for name in ANSWERS if name != "tls" or context is not None]
    ports = {name: serve(name, folder, context if name == "tls" else None) for name in names}
    print(json.dumps(ports), flush=True)
    sys.stdin.read()  # until the test's process ends, however it does


if __name__ == "__main__":
    main()
