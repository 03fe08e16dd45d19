"""A SoundFont 2 file of a few kilobytes: one tone for every program of General MIDI, and one drum.

Layout and numbers of the SoundFont technical specification 2.01: a RIFF of the lists INFO, sdta (samples of 16 bits)
and pdta (presets, instruments and samples; each table ends with a terminal record).
"""

import struct
from pathlib import Path

import numpy as np

RATE = 24_000  # samples per second of what is stored
CYCLES, LENGTH = 11, 600  # of A4 in a loop: 24,000 / 440 * 11 samples, so that the loop is in tune
A4 = 69
GAP = 46  # zeros after each sample, the fewest that the specification allows
# Generators
INSTRUMENT, SAMPLE, SAMPLE_MODES, SCALE_TUNING, ROOT_KEY = 41, 53, 54, 56, 58
RELEASE = 38  # of the volume, in cents of a second: 1200 log2(s)


def samples() -> list[np.ndarray]:
    """A harmonic tone of three loops' length, the middle one to be repeated, and a decaying noise of 0.15 s."""
    cycle = 2 * np.pi * CYCLES * np.arange(LENGTH) / LENGTH
    tone = np.tile(sum(np.sin(k * cycle) / k**2 for k in (1, 2, 3, 4)), 3)
    noise = np.random.default_rng(0).standard_normal(3600) * np.exp(-np.arange(3600) / 600)
    return [(0.5 * x / np.abs(x).max() * 32767).astype("<i2") for x in (tone, noise)]


def chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def zones(generators: list[list[tuple[int, int]]]) -> tuple[bytes, bytes]:
    """Bags and generators of presets or instruments of one zone each, with their terminal records."""
    bags, first = b"", 0
    for zone in [*generators, []]:
        bags += struct.pack("<HH", first, 0)
        first += len(zone)
    flat = [pair for zone in generators for pair in zone]
    return bags, b"".join(struct.pack("<Hh", *pair) for pair in [*flat, (0, 0)])


def write_soundfont(path: Path) -> Path:
    """Write the file: 128 programs of bank 0 play the tone, program 0 of bank 128 the drum at one pitch on all keys."""
    waves, headers, data, at = samples(), b"", b"", 0
    for name, wave, root in ((b"tone", waves[0], A4), (b"drum", waves[1], 60)):
        end = at + len(wave)
        headers += struct.pack("<20s5IBbHH", name, at, end, at + LENGTH, at + 2 * LENGTH, RATE, root, 0, 0, 1)
        data += wave.tobytes() + bytes(2 * GAP)
        at = end + GAP
    headers += struct.pack("<20s5IBbHH", b"EOS", 0, 0, 0, 0, 0, 0, 0, 0, 0)

    places = [(0, program) for program in range(128)] + [(128, 0)]
    presets = b"".join(
        struct.pack("<20sHHHIII", f"{bank}-{program}".encode(), program, bank, i, 0, 0, 0)
        for i, (bank, program) in enumerate(places)
    ) + struct.pack("<20sHHHIII", b"EOP", 0, 0, len(places), 0, 0, 0)
    preset_bags, preset_generators = zones([[(INSTRUMENT, int(bank == 128))] for bank, _ in places])
    instruments = b"".join(struct.pack("<20sH", name, i) for i, name in enumerate((b"tone", b"drum", b"EOI")))
    tone = [(RELEASE, -3986), (SAMPLE_MODES, 1), (SAMPLE, 0)]  # 0.1 s, looped
    drum = [(RELEASE, -3986), (SCALE_TUNING, 0), (SAMPLE, 1)]
    instrument_bags, instrument_generators = zones([tone, drum])
    no_modulators = bytes(10)

    tables = {
        b"phdr": presets,
        b"pbag": preset_bags,
        b"pmod": no_modulators,
        b"pgen": preset_generators,
        b"inst": instruments,
        b"ibag": instrument_bags,
        b"imod": no_modulators,
        b"igen": instrument_generators,
        b"shdr": headers,
    }
    about = chunk(b"ifil", struct.pack("<HH", 2, 1)) + chunk(b"isng", b"EMU8000\0") + chunk(b"INAM", b"tests\0")
    lists = chunk(b"LIST", b"INFO" + about) + chunk(b"LIST", b"sdta" + chunk(b"smpl", data))
    lists += chunk(b"LIST", b"pdta" + b"".join(chunk(name, table) for name, table in tables.items()))
    path.write_bytes(chunk(b"RIFF", b"sfbk" + lists))
    return path
