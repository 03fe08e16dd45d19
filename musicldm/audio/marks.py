"""Marks of AI-made audio: the IPTC's DigitalSourceType, stored where each file format has a place for it.

    WAV, RF64   an XMP packet in a chunk _PMX             FLAC, Ogg, Opus   a Vorbis comment, DIGITALSOURCETYPE
    AIFF        an XMP packet in a chunk APPL             MP3               an XMP packet in an ID3 frame PRIV

Other formats get a sidecar: a file of the same name with the suffix .xmp.

The value is a URI of the IPTC's vocabulary, https://cv.iptc.org/newscodes/digitalsourcetype/. The places are those of
Adobe's XMP Specification, Part 3 (Storage in Files). It has none for Vorbis comments; there the field's name is used.
"""

from __future__ import annotations

import io
import os
import struct
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from musicldm.audio.output import write_whole

if TYPE_CHECKING:
    from mutagen.id3 import ID3

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
NEW = VOCABULARY + "trainedAlgorithmicMedia"  # all of it made by a model
CHANGED = VOCABULARY + "algorithmicallyEnhanced"  # a recording that went through a model as a whole
EDITED = VOCABULARY + "compositeWithTrainedAlgorithmicMedia"  # a recording with parts made by a model
BESIDE = ("W64", "CAF", "AU")  # libsndfile's names of containers that need a sidecar
FIELD = "DIGITALSOURCETYPE"
EXTENSION = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
CREATOR = "MusicLDM"
PACKET = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="{rdf}">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="{extension}" xmlns:xmp="http://ns.adobe.com/xap/1.0/">
   <Iptc4xmpExt:DigitalSourceType>{value}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>{creator}</xmp:CreatorTool>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>"""
LONGEST_PACKET = 2**20  # bytes of a packet that are read


def xmp_packet(source_type: str) -> bytes:
    """The XMP packet for ``source_type``, such as `NEW` or `EDITED`."""
    text = PACKET.format(rdf=RDF, extension=EXTENSION, value=source_type, creator=CREATOR)
    return text.encode("utf-8")


def add_mark(file: BinaryIO, source_type: str) -> None:
    """Write ``source_type`` into an encoded audio ``file`` that is open for reading and writing.

    Raises:
        ValueError: for a format without a place for it.
    """
    kind = kind_of(file)
    if kind in ("RIFF", "RF64"):
        append_chunk(file, b"_PMX", xmp_packet(source_type))
    elif kind == "AIFF":
        append_chunk(file, b"APPL", b"XMP " + xmp_packet(source_type))
    elif kind == "MP3":
        from mutagen.id3 import PRIV

        tags = _id3(file)
        tags.delall("PRIV:XMP")
        tags.add(PRIV(owner="XMP", data=xmp_packet(source_type)))
        tags.save(file)
    elif (tagged := _opened(file)) is not None and hasattr(tagged.tags, "vendor"):
        tagged[FIELD] = source_type
        file.seek(0)
        tagged.save(file)
    else:
        raise ValueError("this kind of file has no place for the mark of AI; write WAV, AIFF, FLAC, Ogg, Opus or MP3")
    file.seek(0)


def read_mark(path: str | Path) -> str | None:
    """The DigitalSourceType of the audio file ``path``, written by any program; None without one.

    Raises:
        OSError: if the file cannot be read.
    """
    with Path(path).open("rb") as file:
        kind = kind_of(file)
        if kind in ("RIFF", "RF64", "AIFF"):
            packets = [data for name, data in _xmp_chunks(file) if name in (b"_PMX", b"APPL")]
        elif kind == "MP3":
            packets = [frame.data for frame in _id3(file).getall("PRIV:XMP")]
        elif (tagged := _opened(file)) is None or tagged.tags is None:
            packets = []
        elif hasattr(tagged.tags, "vendor"):
            if values := tagged.get(FIELD):
                return str(values[0])
            packets = [value.encode() for value in tagged.get("XMP", [])]
        else:
            packets = []
    sidecar = Path(path).with_suffix(".xmp")
    if not packets and sidecar.is_file() and sidecar.stat().st_size <= LONGEST_PACKET:
        packets = [sidecar.read_bytes()]
    return next((value for packet in packets if (value := source_type_of(packet)) is not None), None)


def write_sidecar(path: str | Path, source_type: str) -> None:
    """Write ``source_type`` for the audio file ``path`` into a sidecar.

    Raises:
        OSError: if it cannot be written.
    """
    write_whole(Path(path).with_suffix(".xmp"), xmp_packet(source_type))


def source_type_of(packet: bytes) -> str | None:
    """The DigitalSourceType of an XMP ``packet``, as an element or an attribute; None without one."""
    try:
        root = ElementTree.fromstring(packet.strip(b"\0 \t\r\n"))
    except (ElementTree.ParseError, ValueError):
        return None
    name = f"{{{EXTENSION}}}DigitalSourceType"
    for element in root.iter():
        if name in element.attrib:
            return element.attrib[name].strip() or None
        if element.tag == name:
            return (element.get(f"{{{RDF}}}resource") or element.text or "").strip() or None
    return None


def kind_of(file: BinaryIO) -> str | None:
    """RIFF, RF64, AIFF or MP3 by the first bytes of ``file``; None for another kind."""
    file.seek(0)
    head = file.read(12)
    file.seek(0)
    if head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE":
        return head[:4].decode()
    if head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
        return "AIFF"
    is_mp3 = head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0)
    return "MP3" if is_mp3 else None


def append_chunk(file: BinaryIO, name: bytes, content: bytes) -> None:
    """Append a chunk to a RIFF, RF64 or AIFF ``file``, and update the size in its header.

    Raises:
        ValueError: if the file would become too large for its format.
    """
    kind = kind_of(file)
    order = ">" if kind == "AIFF" else "<"
    end = file.seek(0, os.SEEK_END)
    written = b"\0" * (end % 2) + name + struct.pack(f"{order}I", len(content)) + content + b"\0" * (len(content) % 2)
    size = end + len(written) - 8
    if kind != "RF64" and size >= 2**32:
        raise ValueError(f"a {kind} file cannot have {size} bytes")
    file.write(written)
    if kind == "RF64":  # its 64-bit sizes stand in the chunk ds64, the first one
        file.seek(20)
        file.write(struct.pack("<Q", size))
    else:
        file.seek(4)
        file.write(struct.pack(f"{order}I", size))


def chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """Name and size of each chunk of a RIFF, RF64 or AIFF ``file``, positioned at the chunk's content."""
    kind = kind_of(file)
    order, end = ">" if kind == "AIFF" else "<", file.seek(0, os.SEEK_END)
    samples = None  # bytes of the chunk data of RF64
    at = 12
    while at + 8 <= end:
        file.seek(at)
        name, size = struct.unpack(f"{order}4sI", file.read(8))
        if name == b"ds64":
            samples = struct.unpack("<Q", file.read(16)[8:])[0]
            file.seek(at + 8)
        if name == b"data" and size == 2**32 - 1 and samples is not None:
            size = samples
        yield name, size
        at += 8 + size + size % 2


def _xmp_chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    for name, size in chunks(file):
        if name in (b"_PMX", b"APPL") and size <= LONGEST_PACKET:
            content = file.read(size)
            yield name, content.removeprefix(b"XMP ") if name == b"APPL" else content


def _id3(file: BinaryIO) -> ID3:
    """The ID3 tags of an MP3 ``file``, empty if it has none; rewinds the file."""
    from mutagen.id3 import ID3, ID3NoHeaderError, error

    file.seek(0)
    try:
        return ID3(file)
    except (ID3NoHeaderError, error):  # none, or damaged ones
        return ID3()
    finally:
        file.seek(0)


def _opened(file: BinaryIO):
    """``file`` opened by mutagen; None for an unknown format or a damaged file."""
    import mutagen

    file.seek(0)
    try:
        return mutagen.File(file)
    except (mutagen.MutagenError, io.UnsupportedOperation):
        return None
    finally:
        file.seek(0)
