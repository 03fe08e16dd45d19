"""The mark of AI in each kind of file, read back by this package and by plain parsing of what the format says."""

import io
import struct

import mutagen
import numpy as np
import pytest
import soundfile

from musicldm.audio.marks import EDITED, NEW, VOCABULARY, add_mark, read_mark, source_type_of, xmp_packet

SOUND = (np.sin(np.arange(8000) * 0.1)[:, None] * [0.3, 0.2]).astype(np.float32)
KINDS = {
    "wav": ("WAV", "PCM_16"),
    "odd.wav": ("WAV", "PCM_U8"),
    "rf64.wav": ("RF64", "PCM_24"),
    "flac": ("FLAC", "PCM_16"),
    "aiff": ("AIFF", "PCM_24"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}


def write(path, kind: str, channels: int = 2) -> None:
    container, subtype = KINDS[kind]
    rate = 48_000 if kind == "opus" else 44_100
    sound = SOUND[:7777, :channels] if kind == "odd.wav" else SOUND[:, :channels]
    soundfile.write(path, sound, rate, format=container, subtype=subtype)


@pytest.mark.parametrize("mark", [NEW, EDITED], ids=["new", "edited"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_mark_comes_back_and_the_sound_stays(tmp_path, kind, mark):
    path = tmp_path / f"a.{kind}"
    write(path, kind, channels=1 if kind == "odd.wav" else 2)
    before, rate = soundfile.read(path)
    assert read_mark(path) is None
    with path.open("r+b") as file:
        add_mark(file, mark)
    assert read_mark(path) == mark
    after, same_rate = soundfile.read(path)
    assert np.array_equal(before, after)
    assert rate == same_rate


@pytest.mark.parametrize("kind", ["wav", "odd.wav", "rf64.wav", "aiff"])
def test_the_sizes_in_the_header_are_those_of_the_file(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    write(path, kind, channels=1)
    with path.open("r+b") as file:
        add_mark(file, NEW)
    content = path.read_bytes()
    assert len(content) % 2 == 0
    if kind == "rf64.wav":
        assert content[4:8] == b"\xff" * 4
        assert struct.unpack("<Q", content[20:28])[0] == len(content) - 8
    else:
        assert struct.unpack(">I" if kind == "aiff" else "<I", content[4:8])[0] == len(content) - 8
    name = b"APPL" if kind == "aiff" else b"_PMX"
    assert content.count(name) == 1
    assert content.index(name) % 2 == 0


def test_other_tags_stay_beside_the_mark(tmp_path):
    for kind in ("flac", "ogg", "mp3"):
        path = tmp_path / f"a.{kind}"
        write(path, kind)
        tagged = mutagen.File(path, easy=True)
        if tagged.tags is None:
            tagged.add_tags()
        tagged["title"] = "Rêverie"
        tagged.save()
        with path.open("r+b") as file:
            add_mark(file, EDITED)
            add_mark(file, NEW)  # the last one holds
        assert read_mark(path) == NEW
        assert mutagen.File(path, easy=True)["title"] == ["Rêverie"]


def test_marks_are_written_in_memory_too():
    encoded = io.BytesIO()
    soundfile.write(encoded, SOUND, 44_100, format="WAV", subtype="PCM_16")
    add_mark(encoded, NEW)
    assert encoded.tell() == 0
    assert soundfile.read(encoded)[0].shape == SOUND.shape


@pytest.mark.parametrize(
    "body",
    [
        '<e:DigitalSourceType xmlns:e="{e}">{v}</e:DigitalSourceType>',
        '<e:DigitalSourceType xmlns:e="{e}" r:resource="{v}" />',
    ],
    ids=["text", "resource"],
)
def test_packets_of_other_programs_are_read(body):
    value, extension = VOCABULARY + "digitalCapture", "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    rdf = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
    inner = body.format(e=extension, v=value)
    packet = f'<r:RDF xmlns:r="{rdf}"><r:Description>{inner}</r:Description></r:RDF>'
    assert source_type_of(packet.encode()) == value
    attribute = f'<r:RDF xmlns:r="{rdf}"><r:Description xmlns:q="{extension}" q:DigitalSourceType="{value}"/></r:RDF>'
    assert source_type_of(attribute.encode() + b"\0\0  ") == value


@pytest.mark.parametrize("packet", [b"", b"no XML", b"<a/>", b"\xff\xfe"])
def test_what_is_no_packet_has_no_mark(packet):
    assert source_type_of(packet) is None


def test_the_packet_is_xmp():
    packet = xmp_packet(NEW).decode()
    assert packet.startswith("<?xpacket begin=")
    assert packet.endswith('<?xpacket end="w"?>')
    assert NEW in packet


def test_a_file_without_a_place_for_the_mark_is_refused():
    other = io.BytesIO(b"nothing that is audio")
    with pytest.raises(ValueError, match="no place for the mark of AI"):
        add_mark(other, NEW)
    assert other.getvalue() == b"nothing that is audio"
