"""Lengths of MP3 files whose header has none, or a wrong one.

frames of the file  ->  the same frames after a header with their number

MP3 has no field for the length. Encoders store it in a first frame without sound (Xing, Info). Without it, decoders
estimate the length from the size and the bitrate of the first frames, and stop reading there.
"""

from __future__ import annotations

import re
from typing import BinaryIO, NamedTuple

KBITS = {  # per second, by version and index 1 to 14, of layer III
    1: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44100, 48000, 32000)  # Hz, of version 1
ASIDE = {(1, False): 32, (1, True): 17, (2, False): 17, (2, True): 9}  # bytes before the tag, by version and mono
TAG = b"Xing"
LEAST_TAGGED = 192  # least bytes of a frame in which decoders look for a tag
SLACK = 512  # bytes after the last frame that may be tags
SYNC = re.compile(rb"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]")


class Header(NamedTuple):
    """The fields of a frame header (four bytes)."""

    kind: tuple[int, int, bool]  # version, rate in Hz, mono: equal for all frames of a file
    size: int  # bytes
    samples: int


class Counted(NamedTuple):
    """An MP3 file with a known length."""

    content: bytes
    declared: int  # samples according to the file's own header, 0 without one
    foreign: int  # bytes between frames that were skipped


def frame_at(content: bytes, at: int) -> Header | None:
    """The header of a frame of layer III at byte ``at``; None if there is none."""
    head = content[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2 or (head[1] >> 3) & 3 == 1:
        return None
    bits, rate = head[2] >> 4, (head[2] >> 2) & 3
    if not 0 < bits < 15 or rate == 3:
        return None
    version = 1 if (head[1] >> 3) & 3 == 3 else 2
    hz = RATES[rate] >> {3: 0, 2: 1, 0: 2}[(head[1] >> 3) & 3]
    samples = 1152 if version == 1 else 576
    size = samples // 8 * KBITS[version][bits - 1] * 1000 // hz + ((head[2] >> 1) & 1)
    return Header((version, hz, head[3] >> 6 == 3), size, samples)


def frames_of(content: bytes) -> tuple[list[tuple[int, int]], int, int]:
    """Ranges (begin, end) of consecutive frames, the number of frames, and the number of bytes between ranges."""
    at, kind, n, foreign = _after_tag(content, 0), None, 0, 0
    stretches: list[tuple[int, int]] = []
    while at < len(content):
        header = frame_at(content, at)
        if header and kind in (None, header.kind) and at + header.size <= len(content):
            follows = at + header.size
            joins = bool(stretches) and stretches[-1][1] == at
            after = frame_at(content, follows)
            if joins or follows == len(content) or (after and after.kind == header.kind):
                if joins:
                    stretches[-1] = stretches[-1][0], follows
                else:
                    foreign += _foreign(content, stretches[-1][1], at) if stretches else 0
                    stretches.append((at, follows))
                at, kind, n = follows, header.kind, n + 1
                continue
        found = SYNC.search(content, at + 1)
        at = found.start() if found else len(content)
    return stretches, n, foreign


def stated_frames(file: BinaryIO, size: int) -> int | None:
    """Frames that the header of an MP3 ``file`` of ``size`` bytes states; -1 without one, None if it is reliable.

    It is reliable if the size that it states is that of the file.
    """
    file.seek(0)
    at = _after_tag(file.read(10), 0)
    file.seek(at)
    start = file.read(4096)
    header = frame_at(start, 0)
    if header is None:
        return -1
    place = 4 + ASIDE[header.kind[0], header.kind[2]]
    if start[place : place + 4] not in (b"Xing", b"Info") or not start[place + 7] & 1:
        return -1
    frames, n_bytes = (int.from_bytes(start[place + k : place + k + 4], "big") for k in (8, 12))
    return None if start[place + 7] & 2 and abs(size - at - n_bytes) <= SLACK else frames


def counted(content: bytes, stated: int) -> Counted | None:
    """``content`` of an MP3 file with a correct header; None if the ``stated`` length is correct, or it is not MP3.

    Concatenated and damaged files have headers with a wrong length.
    """
    stretches, n, foreign = frames_of(content)
    if not stretches:
        return None
    header = frame_at(content, stretches[0][0])
    if stated >= 0:
        n -= 1  # the frame with the header has no sound
        if abs(n - stated) <= 1 and not foreign:
            return None
        stretches[0] = stretches[0][0] + header.size, stretches[0][1]
    sound = b"".join(content[begin:end] for begin, end in stretches)
    declared = stated * header.samples if stated >= 0 else 0
    return Counted(_tagged(sound, header, n) + sound, declared, foreign)


def counted_file(file: BinaryIO, size: int) -> Counted | None:
    """`counted` of the MP3 ``file`` of ``size`` bytes, read completely only if its header is not reliable."""
    if (stated := stated_frames(file, size)) is None:
        return None
    file.seek(0)
    return counted(file.read(), stated)


def _tagged(sound: bytes, header: Header, n: int) -> bytes:
    """A frame without sound that states ``n`` following frames and their size, in the format of ``sound``."""
    version, _, mono = header.kind
    for bits in range(1, 15):
        head = bytes([0xFF, sound[1] | 1, bits << 4 | sound[2] & 0x0C, sound[3]])
        size = frame_at(head, 0).size
        if size >= LEAST_TAGGED:
            break
    tag = TAG + (3).to_bytes(4, "big") + n.to_bytes(4, "big") + (size + len(sound)).to_bytes(4, "big")
    return (head + b"\0" * ASIDE[version, mono] + tag).ljust(size, b"\0")


def _after_tag(content: bytes, at: int) -> int:
    """Position after the ID3v2 tags that begin at ``at``."""
    while content[at : at + 3] == b"ID3" and len(content) >= at + 10:
        size = 0
        for byte in content[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size
    return at


def _foreign(content: bytes, begin: int, end: int) -> int:
    """Number of bytes from ``begin`` to ``end`` that are neither frames nor tags."""
    if content[begin : begin + 3] == b"TAG":
        begin += 128
    return max(0, end - _after_tag(content, begin))
