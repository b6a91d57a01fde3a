"""What of a scan tells whose it is, and how recordings do without it.

What is kept is listed, not what goes: elements that vendors add hold whatever they like. Nothing
here changes k-space or pixels, and an image of a head shows a face.
"""

from __future__ import annotations

from typing import Any, Final
from xml.etree import ElementTree

from ismrmrd import Image, Meta

from kdmri_edge.data.formats.mrd_header import header_elements
from kdmri_edge.errors import DataError

__all__ = ["NAMESPACE", "header_without_identity", "image_without_identity"]

NAMESPACE: Final = "http://www.ismrm.org/ISMRMRD"

_ALL: Final = frozenset({"*"})
_KEPT: Final = {
    "version": _ALL,
    "measurementInformation": frozenset(
        {"patientPosition", "relativeTablePosition", "protocolName"}
    ),
    "acquisitionSystemInformation": frozenset(
        {
            "systemVendor",
            "systemModel",
            "systemFieldStrength_T",
            "relativeReceiverNoiseBandwidth",
            "receiverChannels",
            "coilLabel",
        }
    ),
    "experimentalConditions": _ALL,
    "encoding": _ALL,
    "sequenceParameters": _ALL,
}
# free text, wherever it stands
_FREE: Final = frozenset({"comment", "userParameterString", "userParameterBase64"})
_META: Final = (
    "DataRole",
    "ImageType",
    "ImageRowDir",
    "ImageColumnDir",
    "ImageSliceNormDir",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
    "EchoTime",
    "InversionTime",
    "Keep_image_geometry",
)


def header_without_identity(xml: str) -> str:
    """Return a scan's header without what tells whose it is.

    Kept are the encoding, the sequence's and the experiment's numbers, the system's kind, the
    patient's position on the table and the protocol's name; subject, study, institution, station,
    serial numbers, dates, unique identifiers, free text and all that the standard does not know
    are gone.

    Raises:
        DataError: It is no header.
    """
    try:
        root = header_elements(xml)
        for part in list(root):
            kept = _KEPT.get(part.tag)
            if kept is None:
                root.remove(part)
                continue
            for element in list(part):
                if kept is not _ALL and element.tag not in kept:
                    part.remove(element)
        for element in root.iter():
            for inner in list(element):
                if inner.tag in _FREE:
                    element.remove(inner)
            element.tag = f"{{{NAMESPACE}}}{element.tag}"
            element.attrib.clear()
        return ElementTree.tostring(root, "unicode", default_namespace=NAMESPACE)
    except DataError:
        raise
    except (SyntaxError, ValueError, RecursionError) as error:
        raise DataError(
            f"The scan's header is no XML ({type(error).__name__}).", "Check the sender."
        ) from None


def image_without_identity(image: Image) -> Image:
    """Return an image with those attributes alone that place and scale it.

    Those of scanners carry whole DICOM headers. Attributes that cannot be read are left out.
    """
    try:
        given = Meta.deserialize(image.attribute_string)
        kept: dict[str, Any] = {name: given[name] for name in _META if name in given}
    except Exception:  # a client's own text: whatever is wrong with it, none of it is kept
        kept = {}
    bare = Image(image.getHead())
    bare.data[:] = image.data
    bare.meta = kept
    return bare
