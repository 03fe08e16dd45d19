"""Mixtures as training items: partners, alignment, loudness, and the analysis that they come from."""

import json

import numpy as np
import pytest
import soundfile
from pyloudnorm import Meter

from augment.mixup import block_loudness
from augment.pairing import Recording
from musicldm.data.analysis import ANALYSIS_FILE, Analysed, analyse_collection, unmeasured
from musicldm.data.collection import load_clips
from musicldm.data.items import Item
from musicldm.data.mixup import ArrayCache, BeatSynchronousMixup, MixupSettings
from tests.helpers.rhythm import drum_track, needs_madmom

RATE, CLIP_S = 8000, 4.0
TEMPOS = (120.0, 121.5, 60.0, 118.0, 150.0)  # the last one suits none


def drums(bpm, seconds, level, seed):
    """Decaying noise on beats and half beats, loudest on each fourth beat: waveform (L,), beats (N,)."""
    rng = np.random.default_rng(seed)
    waveform = rng.normal(0, 0.05 * level, round(seconds * RATE))
    halves = np.arange(0.25 + 0.05 * seed, seconds - 0.2, 30 / bpm)
    t = np.arange(800) / RATE
    for i, at in enumerate(halves):
        hit = (0.2 if i % 2 else 0.3 if i % 8 else 0.6) * rng.normal(size=800) * np.exp(-t / 0.02)
        waveform[round(at * RATE) :][:800] += level * hit
    return waveform.astype(np.float32), halves[::2]


def analysed(path, waveform, beats, bpm, digest=None, group=None) -> Analysed:
    recording = Recording(
        path.name, group or path.name, len(waveform) / RATE, beats, beats[::4], 4, bpm, 0.8, key="C major"
    )
    return Analysed(path, recording, block_loudness(waveform, RATE), digest or path.name)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """Five recordings of very different loudness, with captions, and their exact analysis."""
    folder = tmp_path_factory.mktemp("collection")
    rows, analysis = [], []
    for i, bpm in enumerate(TEMPOS):
        waveform, beats = drums(bpm, 9.0 if bpm != 60 else 13.0, level=(0.1, 0.9, 0.4, 0.05, 0.5)[i], seed=i)
        path = folder / f"{i}.wav"
        soundfile.write(path, waveform, RATE, subtype="FLOAT")
        rows.append({"file_name": path.name, "text": f"Drums number {i}.", "split": "train"})
        analysis.append(analysed(path, waveform, beats, bpm))
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_clips(folder, CLIP_S), analysis


def mixtures_of(collection, kind="audio", mode="synchronous", **options):
    clips, analysis = collection
    return BeatSynchronousMixup(clips, analysis, RATE, round(CLIP_S * RATE), MixupSettings(kind, mode, **options))


def drawn(dataset, epochs=3):
    return [dataset[Item(epoch, index)] for epoch in range(epochs) for index in range(len(dataset))]


def onsets(waveform):
    """Times (N,) at which a hit begins."""
    energy = np.convolve(waveform**2, np.ones(40), "valid")
    loud = energy > 0.1 * energy.max()
    starts = np.flatnonzero(loud & ~np.roll(loud, 1)) / RATE
    return starts[np.concatenate([[True], np.diff(starts) > 0.15])]


@pytest.mark.parametrize("kind", ["audio", "latent"])
def test_beats_coincide_and_loudness_is_what_lambda_says(collection, kind):
    """Lambda is recovered by regression on both parts, and with it how loud each is heard."""
    made = [mixture for mixture in drawn(mixtures_of(collection, kind)) if mixture is not None]
    assert len(made) > 20
    meter = Meter(RATE)
    for mixture in made:
        assert mixture.a.shape == mixture.b.shape == mixture.waveform.shape == (round(CLIP_S * RATE),)
        parts = np.stack([mixture.a, mixture.b, np.ones_like(mixture.a)], axis=1).astype(np.float64)
        share_a, share_b, _ = np.linalg.lstsq(parts, mixture.waveform, rcond=None)[0]
        assert share_a / (share_a + share_b) == pytest.approx(mixture.lam, abs=1e-3)
        expected_db = 20 * np.log10(mixture.lam / (1 - mixture.lam))
        louder_db = meter.integrated_loudness(share_a * mixture.a.astype(float)) - meter.integrated_loudness(
            share_b * mixture.b.astype(float)
        )
        assert louder_db == pytest.approx(expected_db, abs=0.5)
        assert np.abs(mixture.waveform).max() == pytest.approx(0.5, abs=1e-4)
        sparse, dense = sorted((onsets(mixture.a), onsets(mixture.b)), key=len)
        apart = np.abs(sparse[:, None] - dense[None]).min(axis=1)
        assert len(sparse) >= 3
        assert np.median(apart) <= 0.02
    assert {mixture.partner for mixture in made} == {"0.wav", "1.wav", "2.wav", "3.wav"}
    assert {round(mixture.alignment.speed, 3) for mixture in made} - {1.0}


@pytest.mark.parametrize("mode", ["synchronous", "paper"])
def test_stereo_recordings_are_mixed_alike_and_keep_their_places(collection, tmp_path, mode):
    """The pairs, shares and loudness are those of the mean of the channels, and what is hard left stays there."""
    clips, analysis = collection
    for clip in clips:
        waveform, _ = soundfile.read(clip.path, dtype="float32")
        soundfile.write(
            tmp_path / clip.path.name, np.stack([2 * waveform, 0 * waveform], axis=1), RATE, subtype="FLOAT"
        )
    stereo = BeatSynchronousMixup(
        [clip._replace(path=tmp_path / clip.path.name) for clip in clips],
        [one._replace(path=tmp_path / one.path.name) for one in analysis],
        RATE,
        round(CLIP_S * RATE),
        MixupSettings("audio", mode),
        channels=2,
    )
    pairs = list(zip(drawn(mixtures_of(collection, "audio", mode), 1), drawn(stereo, 1), strict=True))
    assert sum(mono is not None for mono, _ in pairs) > 2
    for mono, mixed in pairs:
        assert (mono is None) == (mixed is None)
        if mono is not None:
            assert (mono.lam, mono.partner, mono.alignment) == (mixed.lam, mixed.partner, mixed.alignment)
            assert mixed.a.shape == mixed.waveform.shape == (2, round(CLIP_S * RATE))
            assert not mixed.waveform[1].any()
            np.testing.assert_allclose(mixed.b.mean(axis=0), mono.b, atol=2e-3)
            np.testing.assert_allclose(mixed.waveform[0], mono.waveform, atol=2e-3)


def test_captions_name_both_parts(collection):
    mixture = next(mixture for mixture in drawn(mixtures_of(collection)) if mixture is not None)
    assert "layered with drums number" in mixture.text
    paper = drawn(mixtures_of(collection, mode="paper"))
    assert {mixture.text for mixture in paper} <= {f"Drums number {i}." for i in range(5)}


def test_an_item_is_the_same_whatever_was_drawn_before(collection):
    straight, again = mixtures_of(collection), mixtures_of(collection)
    first = [straight[Item(2, index)] for index in range(len(straight))]
    second = [again[Item(2, index)] for index in reversed(range(len(again)))][::-1]
    for one, other in zip(first, second, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one.waveform, other.waveform)
    assert any(one.lam != other.lam for one, other in zip(first, drawn(straight, 1), strict=True) if one and other)
    other_seed = [mixtures_of(collection, seed=1)[Item(2, index)] for index in range(len(straight))]
    assert all(one.lam != other.lam for one, other in zip(first, other_seed, strict=True) if one and other)


def test_paper_mixes_what_the_authors_mix(collection):
    """Groups of 3 BPM, itself included, from one downbeat each, loudness as it is."""
    clips, _ = collection
    dataset = mixtures_of(collection, mode="paper")
    partners = {}
    for index in range(len(dataset)):
        for epoch in range(10):
            mixture = dataset[Item(epoch, index)]
            partners.setdefault(clips[index].path.name, set()).add(mixture.partner)
            assert mixture.alignment.speed == 1
    assert partners == {"0.wav": {"0.wav", "1.wav"}, "1.wav": {"0.wav", "1.wav"}} | {
        name: {name} for name in ("2.wav", "3.wav", "4.wav")
    }
    latent = mixtures_of(collection, "latent", "paper")[Item(0, 0)]
    waveform, _ = soundfile.read(clips[0].path, dtype="float32")
    start = round(latent.alignment.a_start_s * RATE)
    n = min(round(CLIP_S * RATE), len(waveform) - start)
    heard = np.flatnonzero(latent.a)[-1] + 1
    np.testing.assert_array_equal(latent.a[:heard], waveform[start : start + n][:heard])


def test_plain_mixes_any_two_clips_as_they_are(collection):
    clips, _ = collection
    made = drawn(mixtures_of(collection, "plain"))
    assert all(mixture is not None for mixture in made)
    assert {mixture.partner for mixture in made} == {f"{i}.wav" for i in range(5)}
    starts = {(clip.path.name, clip.start_s) for clip in clips}
    assert all((mixture.partner, mixture.alignment.b_start_s) in starts for mixture in made)
    for index, clip in enumerate(clips):
        assert made[index].partner != clip.path.name


def test_copies_never_meet(collection):
    clips, analysis = collection
    copies = [one._replace(digest="same") for one in analysis[:2]] + analysis[2:]
    dataset = mixtures_of((clips, copies))
    for index, clip in enumerate(clips):
        partners = {mixture.partner for epoch in range(6) if (mixture := dataset[Item(epoch, index)])}
        if clip.path.name in ("0.wav", "1.wav"):
            assert partners
            assert not partners & {"0.wav", "1.wav"}


def test_a_recording_without_partner_gives_none(collection):
    clips, _ = collection
    dataset = mixtures_of(collection)
    alone = next(i for i, clip in enumerate(clips) if clip.path.name == "4.wav")
    assert dataset[Item(0, alone)] is None
    with pytest.raises(IndexError, match="item 99 is out of range"):
        dataset[Item(0, 99)]


def test_what_is_wrong_is_refused(collection):
    clips, analysis = collection
    with pytest.raises(ValueError, match="plain, audio, latent, got 'loud'"):
        mixtures_of(collection, "loud")
    with pytest.raises(ValueError, match=r"1 recordings are not analysed, the first is 0\.wav"):
        mixtures_of((clips, analysis[1:]))


def test_what_is_kept_is_bounded():
    kept, made = ArrayCache(most_bytes=1000), []

    def make(key):
        made.append(key)
        return np.zeros(100, np.float32)

    for key in (0, 1, 0, 2, 0, 1):  # 400 bytes each: two fit
        kept.get(key, lambda key=key: make(key))
    assert made == [0, 1, 2, 1]
    assert kept.n_bytes == 800


@pytest.mark.slow
@needs_madmom
def test_analysis_is_measured_once_and_only_what_is_new(tmp_path):
    for i, bpm in enumerate((100.0, 130.0)):
        soundfile.write(tmp_path / f"{i}.wav", drum_track(bpm, 4, rate=RATE)[0], RATE)
    first = analyse_collection(tmp_path)
    file = tmp_path / ANALYSIS_FILE
    lines = file.read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in lines] == ["0.wav", "1.wav"]
    assert first[0].recording.tempo_bpm == pytest.approx(100, rel=0.01)
    assert first[0].digest != first[1].digest
    assert len(first[0].loudness_lufs) == 96  # (9.9 - 0.4) / 0.1 + 1

    other, beats, _ = drum_track(150.0, 3, rate=RATE)  # another recording of that name
    soundfile.write(tmp_path / "1.wav", other, RATE)
    file.write_text(lines[0] + "\n" + lines[1] + "\n" + lines[1][:40])  # and a run that was killed
    again = analyse_collection(tmp_path)
    assert len(again[1].recording.beats_s) == pytest.approx(len(beats), abs=1)
    np.testing.assert_array_equal(again[0].recording.beats_s, first[0].recording.beats_s)
    assert file.read_text().splitlines()[:2] == lines
    assert len(file.read_text().splitlines()) == 3
    file.write_text("nonsense\n" + lines[1] + "\n")
    with pytest.raises(ValueError, match="line 1, is not a line of an analysis"):
        analyse_collection(tmp_path)


def test_plain_needs_no_analysis(tmp_path):
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", drums(100.0, 5.0, 0.5, i)[0], RATE)
    clips = load_clips(tmp_path, CLIP_S)
    plain = MixupSettings("plain")
    mixture = BeatSynchronousMixup(clips, unmeasured(tmp_path), RATE, round(CLIP_S * RATE), plain)[Item(0, 0)]
    assert mixture.partner == "1.wav"
    assert not (tmp_path / ANALYSIS_FILE).exists()
