"""Reading, changing and cutting scores.

    MIDI file -> read_score -> Score -> change_score -> Score -> write_windows -> a short MIDI file to synthesize

A ``Score`` holds notes with their times in seconds; what the player needs besides (volume, pedal, pitch bend)
stays in ``controls``. Programs are a property of each note, so that parts can be given other instruments.
"""

import io
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

try:
    import mido
    from mido.midifiles.meta import KeySignatureError
except ImportError as error:
    raise ImportError("reading scores needs mido: run `pip install 'musicldm[render]'`") from error

from musicldm.scores.general_midi import DRUM_CHANNEL

NOTE = np.dtype(
    [
        ("start_s", "f8"),
        ("end_s", "f8"),
        ("pitch", "i4"),
        ("velocity", "i4"),
        ("channel", "i4"),
        ("program", "i4"),
        ("level", "f8"),  # channel volume x expression at the onset, 0 to 1
    ]
)
BANK_SELECT = (0, 32)
PARAMETER_NUMBERS = (6, 38, 96, 97, 98, 99, 100, 101)  # order matters among these, so they are replayed in full
SUSTAIN_PEDAL, ALL_SOUND_OFF, RESET_CONTROLLERS, ALL_NOTES_OFF = 64, 120, 121, 123
KEPT_AFTER_RESET = (7, 10, 91, 93)
TICKS_PER_S = 10_000
TICKS_A_BEAT = 9_600
LEAST_MICROS, MOST_MICROS = 10_000, 2**24 - 1  # of a quarter note: 6,000 and 3.6 a minute
MAX_BYTES = 8 * 2**20  # of a file, 20 times the longest symphony: 1 GB of memory while it is read
MAX_TICK = 2**48
MAX_NOTE_S = 30.0  # a note that is never ended, or for a very long time, ends here


class Score(NamedTuple):
    """A piece of music in seconds."""

    notes: np.ndarray  # (N,) of NOTE, by start
    controls: list[tuple[float, mido.Message]]  # control_change, pitchwheel, aftertouch, by time
    tempos: np.ndarray  # (M, 2): from which second on, quarter notes a minute; empty when none is stated
    metres: list[tuple[float, int, int]]  # from which second on, numerator, denominator
    keys: list[tuple[float, str]]  # from which second on, as "F#m"


class Change(NamedTuple):
    """What one rendering does to a score."""

    tempo_factor: float = 1.0
    transpose: int = 0  # semitones; drums are left alone
    velocity_factor: float = 1.0
    programs: Mapping[tuple[int, int], int] = MappingProxyType({})  # (channel, program) -> program
    octaves: Mapping[tuple[int, int], int] = MappingProxyType({})  # the same -> semitones besides ``transpose``
    parts: frozenset[tuple[int, int]] | None = None  # (channel, program) that play; None means all
    drum_kit: int | None = None  # None keeps the score's own


def read_score(path: Path, tracks: Sequence[int] | None = None) -> Score:
    """Read a standard MIDI file of type 0 or 1; with ``tracks`` only the notes of these (`_chosen`).

    Raises FileNotFoundError when there is none, ValueError when it cannot be read or has no notes.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
        if not content:
            raise ValueError("it is empty")
        if len(content) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes; split it")
        midi = mido.MidiFile(file=io.BytesIO(content), clip=True)
    except FileNotFoundError:
        raise
    except (OSError, EOFError, ValueError, KeyError, IndexError, TypeError, struct.error, KeySignatureError) as error:
        reason = (
            str(error)
            if isinstance(error, (OSError, ValueError, KeySignatureError))
            else "it is damaged, or ends too early"
        )
        raise ValueError(f"{path} is not a readable MIDI file: {reason}") from error
    if midi.type == 2:
        raise ValueError(f"{path} holds independent patterns (MIDI type 2); save it as type 0 or 1")
    if midi.ticks_per_beat == 0:
        raise ValueError(f"{path} states 0 ticks per quarter note, so that its notes have no time; save it anew")
    if not 0 < midi.ticks_per_beat < 0x8000:
        raise ValueError(f"{path} counts time in film frames; save it with ticks per quarter note")
    events = _merge(midi if tracks is None else _chosen(midi, tracks, path))
    if events and events[-1][0] > MAX_TICK:
        raise ValueError(f"{path} has an event at tick {events[-1][0]}, which no music reaches; save it anew")
    # A tempo of 0 microseconds a quarter note is none: what held before it goes on.
    tempos = [(tick, m.tempo) for tick, m in events if m.type == "set_tempo" and m.tempo > 0]
    seconds = _seconds(tempos, midi.ticks_per_beat)
    score = _collect(events, seconds)
    if not len(score.notes):
        raise ValueError(f"{path} holds no notes")
    return score


def _chosen(midi: mido.MidiFile, tracks: Sequence[int], path: Path) -> mido.MidiFile:
    """``midi`` with the notes of ``tracks`` alone: counted from 1 among those that have notes, in type 0 by channels.

    Raises ValueError when there are none of such numbers.
    """
    messages = [(i, m) for i, track in enumerate(midi.tracks) for m in track if m.type == "note_on"]
    by_channel = len(midi.tracks) == 1
    voices = sorted({m.channel if by_channel else i for i, m in messages})
    if missing := [number for number in tracks if not 1 <= number <= len(voices)]:
        what = "channels" if by_channel else "tracks"
        raise ValueError(f"{path} has {len(voices)} {what} with notes, counted from 1; there is no {missing[0]}")
    kept = {voices[number - 1] for number in tracks}
    chosen = mido.MidiFile(ticks_per_beat=midi.ticks_per_beat, type=midi.type)
    for i, track in enumerate(midi.tracks):
        other = mido.MidiTrack()
        left_out = 0  # ticks of messages that were left out
        for m in track:
            if m.type in ("note_on", "note_off") and (m.channel if by_channel else i) not in kept:
                left_out += m.time
            else:
                other.append(m.copy(time=m.time + left_out))
                left_out = 0
        chosen.tracks.append(other)
    return chosen


def _merge(midi: mido.MidiFile) -> list[tuple[int, mido.Message]]:
    """All tracks' messages with their absolute ticks, in playing order."""
    events = []
    for track in midi.tracks:
        tick = 0
        for message in track:
            tick += message.time
            events.append((tick, message))
    events.sort(key=lambda event: event[0])  # stable: within a tick, tracks keep their order
    return events


def _seconds(tempos: list[tuple[int, int]], ticks_per_beat: int) -> Callable[[int], float]:
    """A function from ticks to seconds for the tempo map ``(tick, microseconds a quarter note)``."""
    ticks, micros = [0], [500_000]
    for tick, tempo in tempos:
        if tick == ticks[-1]:
            micros[-1] = tempo
        else:
            ticks.append(tick)
            micros.append(tempo)
    changes, per_tick = np.array(ticks), np.array(micros) / 1e6 / ticks_per_beat
    starts = np.concatenate([[0.0], np.cumsum(np.diff(changes) * per_tick[:-1])])

    def seconds(tick: int) -> float:
        i = np.searchsorted(changes, tick, side="right") - 1
        return float(starts[i] + (tick - changes[i]) * per_tick[i])

    return seconds


def _collect(events: list[tuple[int, mido.Message]], seconds: Callable[[int], float]) -> Score:
    notes, controls, tempos, metres, keys = [], [], [], [], []
    program, volume, expression = [0] * 16, [100] * 16, [127] * 16
    sounding: dict[tuple[int, int], list] = {}  # (channel, pitch) -> note

    last_tick, time = -1, 0.0
    for tick, m in events:
        if tick != last_tick:
            last_tick, time = tick, seconds(tick)
        if m.type == "note_on" and m.velocity > 0:
            c = m.channel
            note = [time, np.inf, m.note, m.velocity, c, program[c], volume[c] * expression[c] / 127**2]
            notes.append(note)
            # As in a synthesizer, a key has one note at a time: striking it again ends what it played.
            if (c, m.note) in sounding:
                sounding[c, m.note][1] = time
            sounding[c, m.note] = note
        elif m.type in ("note_off", "note_on"):
            if (m.channel, m.note) in sounding:
                sounding.pop((m.channel, m.note))[1] = time
        elif m.type == "program_change":
            program[m.channel] = m.program
        elif m.type == "control_change":
            if m.control == 7:
                volume[m.channel] = m.value
            elif m.control == 11:
                expression[m.channel] = m.value
            elif m.control == RESET_CONTROLLERS:
                expression[m.channel] = 127
            elif m.control in (ALL_SOUND_OFF, ALL_NOTES_OFF):
                for key in [key for key in sounding if key[0] == m.channel]:
                    sounding.pop(key)[1] = time
                continue
            if m.control not in BANK_SELECT:  # other banks hold other instruments than General MIDI names
                controls.append((time, m))
        elif m.type in ("pitchwheel", "aftertouch"):
            controls.append((time, m))
        elif m.type == "set_tempo" and m.tempo > 0:
            tempos.append((time, 6e7 / m.tempo))
        elif m.type == "time_signature":
            metres.append((time, m.numerator, m.denominator))
        elif m.type == "key_signature":
            keys.append((time, m.key))
    for note in notes:
        note[1] = min(note[1], note[0] + MAX_NOTE_S)
    table = np.array([tuple(note) for note in notes if note[1] > note[0]], dtype=NOTE)
    return Score(table, controls, np.array(tempos).reshape(-1, 2), metres, keys)


def parts(score: Score) -> list[tuple[int, int]]:
    """The (channel, program) pairs that have notes, drums left out."""
    melodic = score.notes[score.notes["channel"] != DRUM_CHANNEL]
    return sorted({(int(c), int(p)) for c, p in zip(melodic["channel"], melodic["program"], strict=True)})


def select(notes: np.ndarray, part: tuple[int, int]) -> np.ndarray:
    """Mask (N,) of the notes of one part."""
    return (notes["channel"] == part[0]) & (notes["program"] == part[1])


def change_score(score: Score, change: Change) -> Score:
    """``score`` with other tempo, pitch, instruments and dynamics. Notes that leave 0 to 127 raise ValueError."""
    notes = score.notes.copy()
    drums = notes["channel"] == DRUM_CHANNEL
    keep = np.ones(len(notes), bool)
    pitch, program = notes["pitch"].copy(), notes["program"].copy()
    pitch[~drums] += change.transpose
    for part in parts(score):
        mask = select(notes, part)
        if change.parts is not None and part not in change.parts:
            keep &= ~mask
        pitch[mask] += change.octaves.get(part, 0)
        program[mask] = change.programs.get(part, part[1])
    if change.parts is not None and (DRUM_CHANNEL, 0) not in change.parts:
        keep &= ~drums
    if change.drum_kit is not None:
        program[drums] = change.drum_kit
    if pitch[keep].size and (pitch[keep].min() < 0 or pitch[keep].max() > 127):
        raise ValueError(f"transposed by {change.transpose} semitones, notes leave the MIDI range 0 to 127")
    notes["pitch"], notes["program"] = pitch, program
    notes["velocity"] = np.clip(np.rint(notes["velocity"] * change.velocity_factor), 1, 127)
    notes["start_s"] /= change.tempo_factor
    notes["end_s"] /= change.tempo_factor
    tempos = score.tempos.copy()
    tempos[:, 0] /= change.tempo_factor
    tempos[:, 1] *= change.tempo_factor
    return Score(
        notes[keep],
        [(time / change.tempo_factor, message) for time, message in score.controls],
        tempos,
        [(time / change.tempo_factor, n, d) for time, n, d in score.metres],
        [(time / change.tempo_factor, key) for time, key in score.keys],
    )


def write_windows(score: Score, windows: Sequence[tuple[float, float]], path: Path) -> None:
    """Write the music of each window (start_s, end_s), one after the other, as a MIDI file.

    Windows go by their starts. What was set before one (controllers, bend) holds in it from its start; notes that
    sound across its start are struck again there, and what sounds at its end is cut off.
    """
    midi = mido.MidiFile(ticks_per_beat=TICKS_PER_S)
    track = midi.add_track()
    track.append(mido.MetaMessage("set_tempo", tempo=1_000_000))
    for start_s, end_s in windows:
        last, final = 0, _tick(end_s - start_s)
        for tick, _, message in _events(score, start_s, end_s, _tick):
            if tick < final:
                track.append(message.copy(time=tick - last))
                last = tick
        # FluidSynth plays on until the last voice is silent: a note that is held at the end would go on for ever.
        for channel in range(16):
            track.append(mido.Message("control_change", channel=channel, control=ALL_SOUND_OFF, time=final - last))
            track.append(mido.Message("control_change", channel=channel, control=RESET_CONTROLLERS))
            last = final
    track.append(mido.MetaMessage("end_of_track"))
    midi.save(path)


def _events(
    score: Score, start_s: float, end_s: float, ticks: Callable[[float], int]
) -> list[tuple[int, int, mido.Message]]:
    """(tick, stage, message) of a window; within a tick, ends of notes, then controllers, then starts of notes.

    ``ticks`` are those of so many seconds after the window's start.
    """
    events = [(0, 1, message) for message in state(score.controls, start_s)]
    events += [(ticks(time - start_s), 1, m) for time, m in score.controls if start_s <= time < end_s]
    current: dict[int, int] = {}
    notes = score.notes
    for note in notes[(notes["start_s"] < end_s) & (notes["end_s"] > start_s)]:
        channel, program, pitch = int(note["channel"]), int(note["program"]), int(note["pitch"])
        begin = ticks(max(note["start_s"] - start_s, 0.0))
        end = max(ticks(note["end_s"] - start_s), begin + 1)
        if current.get(channel) != program:
            current[channel] = program
            events.append((begin, 2, mido.Message("program_change", channel=channel, program=program)))
        velocity = int(note["velocity"])
        events.append((begin, 2, mido.Message("note_on", channel=channel, note=pitch, velocity=velocity)))
        events.append((end, 0, mido.Message("note_off", channel=channel, note=pitch)))
    return sorted(events, key=lambda event: event[:2])


def midi_file(score: Score, seconds: float) -> bytes:
    """A MIDI file of type 1 of ``score``, a track for each channel, in its tempos and metres.

    Times are those of the nearest tick, 60 / tempo / `TICKS_A_BEAT` s long. What is later than ``seconds`` is left out.
    """
    tempos = [(float(time), round(min(max(6e7 / tempo, LEAST_MICROS), MOST_MICROS))) for time, tempo in score.tempos]
    known = tempos if tempos and tempos[0][0] <= 0 else [(0.0, 500_000), *tempos]
    starts, micros = [time for time, _ in known], [micro for _, micro in known]
    at = np.concatenate([[0.0], np.cumsum(np.diff(starts) / np.array(micros[:-1]) * 1e6 * TICKS_A_BEAT)])

    def ticks(time: float) -> int:
        i = max(int(np.searchsorted(starts, time, side="right")) - 1, 0)
        return round(float(at[i] + (time - starts[i]) / micros[i] * 1e6 * TICKS_A_BEAT))

    conductor = [(ticks(time), 0, mido.MetaMessage("set_tempo", tempo=micro)) for time, micro in tempos]
    for time, numerator, denominator in score.metres:
        message = mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)
        conductor.append((ticks(time), 0, message))
    midi = mido.MidiFile(ticks_per_beat=TICKS_A_BEAT, type=1)
    midi.tracks.append(_track(conductor, ticks(seconds)))
    events = _events(score, 0.0, seconds, ticks)
    for channel in dict.fromkeys(message.channel for _, stage, message in events if stage == 2):
        midi.tracks.append(_track([event for event in events if event[2].channel == channel], ticks(seconds)))
    written = io.BytesIO()
    midi.save(file=written)
    return written.getvalue()


def _track(events: list[tuple[int, int, mido.Message]], end: int) -> mido.MidiTrack:
    """A track of (tick, order within the tick, message), which ends at the tick ``end`` or with its last event."""
    track, last = mido.MidiTrack(), 0
    for tick, _, message in sorted(events, key=lambda event: event[:2]):
        track.append(message.copy(time=tick - last))
        last = tick
    track.append(mido.MetaMessage("end_of_track", time=max(end - last, 0)))
    return track


def _tick(seconds: float) -> int:
    return round(seconds * TICKS_PER_S)


def state(controls: list[tuple[float, mido.Message]], until_s: float) -> list[mido.Message]:
    """The fewest messages that set the player as ``controls`` before ``until_s`` have left it."""
    latest: dict[tuple, mido.Message] = {}
    parameters = []
    for time, m in controls:
        if time >= until_s:
            break
        if m.type == "control_change":
            if m.control in PARAMETER_NUMBERS:
                parameters.append(m)
            elif m.control == RESET_CONTROLLERS:
                for key in [k for k in latest if k[1] == m.channel and k[2] not in KEPT_AFTER_RESET]:
                    del latest[key]
            else:
                latest[m.type, m.channel, m.control] = m
        else:
            latest[m.type, m.channel, None] = m
    return parameters + list(latest.values())
