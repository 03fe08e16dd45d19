"""Edited recordings: what is kept is the source's to the bit, in every format, however often it is edited."""

import os

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from musicldm.audio import read_recipe
from musicldm.editing import Patch, Source, apply, output_form, seams, write_patched
from tests.helpers.disk import full_disk

FORMS = [
    ("WAV", "PCM_U8"),
    ("WAV", "PCM_16"),
    ("WAV", "PCM_24"),
    ("WAV", "PCM_32"),
    ("WAV", "FLOAT"),
    ("WAV", "DOUBLE"),
    ("WAV", "ULAW"),
    ("WAVEX", "PCM_24"),
    ("RF64", "PCM_16"),
    ("RF64", "FLOAT"),
    ("W64", "PCM_24"),
    ("W64", "DOUBLE"),
    ("AIFF", "PCM_S8"),
    ("AIFF", "PCM_24"),
    ("AIFF", "FLOAT"),
    ("FLAC", "PCM_S8"),
    ("FLAC", "PCM_16"),
    ("FLAC", "PCM_24"),
    ("CAF", "PCM_32"),
    ("AU", "PCM_16"),
]
SUFFIX = {
    "WAV": "wav",
    "WAVEX": "wav",
    "RF64": "rf64",
    "W64": "w64",
    "AIFF": "aif",
    "FLAC": "flac",
    "CAF": "caf",
    "AU": "au",
}
KIND = {"FLOAT": "float32", "DOUBLE": "float64"}
RECIPE = {"prompt": "Übung " + "x" * 3000, "seed": 3}


def write_source(folder, container, subtype, rate=44_100, channels=2, n=5000, seed=0, name="source"):
    """A file of noise, and its samples (A, n) as soundfile reads them."""
    samples = np.random.default_rng(seed).uniform(-1, 1, (n, channels))
    path = folder / f"{name}.{SUFFIX[container]}"
    soundfile.write(path, samples, rate, subtype, format=container)
    return path, stored(path, subtype)


def stored(path, subtype):
    return soundfile.read(path, dtype=KIND.get(subtype, "int32"), always_2d=True)[0].T


def noise(source, start, stop, seed=1):
    samples = np.random.default_rng(seed).uniform(-1.2, 1.2, (source.channels, stop - start))
    return Patch(start, stop, samples)


@pytest.mark.parametrize(("container", "subtype"), FORMS)
def test_what_is_kept_is_the_same_to_the_bit(tmp_path, container, subtype):
    path, before = write_source(tmp_path, container, subtype)
    content = path.read_bytes()
    source = Source.open(path)
    patches = [noise(source, -100, 0), noise(source, 1000, 1003), noise(source, 4990, 5200)]
    form = write_patched(tmp_path / f"made.{SUFFIX[container]}", source, patches, recipe=RECIPE)
    made = soundfile.info(tmp_path / f"made.{SUFFIX[container]}")
    assert (made.format, made.subtype, made.samplerate, made.channels) == (container, subtype, 44_100, 2)
    assert (form.container, form.subtype) == (container, subtype)
    after = stored(tmp_path / f"made.{SUFFIX[container]}", subtype)
    assert after.shape == (2, 5300)
    assert np.array_equal(after[:, 100:1100], before[:, :1000])
    assert np.array_equal(after[:, 1103:5090], before[:, 1003:4990])
    assert not np.array_equal(after[:, 1100:1103], before[:, 1000:1003])
    assert path.read_bytes() == content
    if container in ("AU", "W64"):
        assert "no place for the recipe" in form.remarks[-1]
    else:
        assert read_recipe(tmp_path / f"made.{SUFFIX[container]}") == RECIPE
    assert seams(source, patches) == [100 / 44_100, 1100 / 44_100, 1103 / 44_100, 5090 / 44_100]


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16", "int32"])
@pytest.mark.parametrize("shape", [(400,), (1, 400), (3, 400)])
def test_arrays_keep_their_kind(dtype, shape):
    rng = np.random.default_rng(0)
    if dtype[0] == "i":
        limits = np.iinfo(dtype)
        array = rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)
    else:
        array = rng.uniform(-1, 1, shape).astype(dtype)
    source = Source.of(array, 8000)
    made = apply(source, [Patch(100, 120, np.full((source.channels, 20), 0.25)), noise(source, 400, 410)])
    assert made.dtype == array.dtype
    assert made.shape == (*shape[:-1], 410)
    assert np.array_equal(made[..., :100], array[..., :100])
    assert np.array_equal(made[..., 120:400], array[..., 120:])
    quarter = 0.25 if dtype[0] == "f" else 2 ** (8 * array.itemsize - 3)
    assert np.all(made[..., 100:120] == quarter)


def test_tensors_are_arrays():
    import torch

    tensor = torch.linspace(-1, 1, 100)
    assert np.array_equal(apply(Source.of(tensor, 8000), []), tensor.numpy())
    with pytest.raises(ValueError, match=r"audio must be an array of float16.*, got torch\.bfloat16"):
        Source.of(tensor.bfloat16(), 8000)


EDITS = st.tuples(st.sampled_from(["before", "after", "hole"]), st.integers(1, 400))


@settings(max_examples=25)
@given(
    form=st.sampled_from(FORMS),
    rate=st.sampled_from([8000, 11_025, 44_100, 192_000]),
    channels=st.integers(1, 8),
    edits=st.lists(
        st.tuples(st.sampled_from(["before", "after", "hole"]), st.integers(1, 400)), min_size=5, max_size=5
    ),
)
def test_five_edits_in_a_row_never_touch_what_was_there(tmp_path_factory, form, rate, channels, edits):
    folder = tmp_path_factory.mktemp("edits")
    path, before = write_source(folder, *form, rate, channels, 900)
    where = np.arange(900)  # in the newest file, of each sample of the first that is kept until then
    for number, (kind, n) in enumerate(edits):
        source = Source.open(path)
        start = {"before": -n, "after": source.length, "hole": source.length // 3}[kind]
        patch = noise(source, start, min(start + n, source.length) if kind == "hole" else start + n, number)
        path = folder / f"{number}.{SUFFIX[form[0]]}"
        write_patched(path, source, [patch])
        kept = (where < patch.start) | (where >= patch.stop)
        before, where = before[:, kept], where[kept] + max(0, -patch.start)
    assert np.array_equal(stored(path, form[1])[:, where], before)


def test_stretches_are_read_as_the_whole_is(tmp_path):
    """Ogg and MP3 decoders need sound before a stretch, and long files are decoded in blocks."""
    rng = np.random.default_rng(0)
    sound = np.sin(np.arange(150_000) * 0.05)[:, None] * [0.5, 0.3] + rng.normal(0, 0.05, (150_000, 2))
    for kind, subtype in (("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III"), ("flac", "PCM_24")):
        soundfile.write(tmp_path / f"a.{kind}", sound, 44_100, subtype)
        whole = soundfile.read(tmp_path / f"a.{kind}", dtype="float32")[0].T.astype(float)
        source = Source.open(tmp_path / f"a.{kind}")
        for start, stop in ((0, 10), (48_000, 49_000), (100_001, 149_000), (149_990, 150_000), (7, 7)):
            assert np.abs(source.read(start, stop) - whole[:, start:stop]).max(initial=0) < 1e-7, (kind, start)


@pytest.mark.parametrize(("kind", "subtype"), [("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")])
def test_decoded_files_become_float_wav_unless_a_format_is_given(tmp_path, kind, subtype):
    soundfile.write(tmp_path / f"a.{kind}", np.sin(np.arange(20_000) / 9), 44_100, subtype)
    source = Source.open(tmp_path / f"a.{kind}")
    form = output_form(source)
    assert (form.container, form.subtype, form.suffix) == ("WAV", "FLOAT", ".wav")
    assert "decoded" in form.remarks[0]
    write_patched(tmp_path / "made.wav", source, [noise(source, 100, 200)])
    decoded = soundfile.read(tmp_path / f"a.{kind}", dtype="float32")[0]
    made = soundfile.read(tmp_path / "made.wav", dtype="float32")[0]
    assert np.array_equal(made[200:], decoded[200:])
    form = write_patched(tmp_path / "made.flac", source, [], "flac")
    assert (form.container, form.subtype) == ("FLAC", "PCM_24")
    assert form.remarks == ("FLAC files have no FLOAT samples: they are PCM_24, to which kept samples are rounded",)


@pytest.mark.parametrize(
    ("form", "asked", "expected"),
    [
        (("AIFF", "PCM_S8"), "wav", "PCM_U8"),
        (("WAV", "PCM_U8"), "flac", "PCM_S8"),
        (("WAV", "ULAW"), "flac", "PCM_16"),
        (("FLAC", "PCM_24"), "w64", "PCM_24"),
        (("WAV", "DOUBLE"), "caf", "DOUBLE"),
    ],
)
def test_another_container_keeps_rate_channels_and_samples(tmp_path, form, asked, expected):
    path, before = write_source(tmp_path, *form, rate=96_000, channels=3)
    made = tmp_path / f"made.{asked}"
    assert write_patched(made, Source.open(path), [], asked).subtype == expected
    info = soundfile.info(made)
    assert (info.subtype, info.samplerate, info.channels) == (expected, 96_000, 3)
    assert np.array_equal(stored(made, expected), before)


def test_tags_are_kept_and_files_are_the_same_each_time(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.wav", "w", 8000, 1, "FLOAT") as file:
        file.title, file.artist, file.comment = "Tünde", "Ann", "mine"
        file.write(np.zeros(100) + 0.5)
    source = Source.open(tmp_path / "a.wav")
    for name in ("b", "c"):
        write_patched(tmp_path / f"{name}.wav", source, [noise(source, 10, 20)], recipe=RECIPE)
    assert (tmp_path / "b.wav").read_bytes() == (tmp_path / "c.wav").read_bytes()
    peak = (tmp_path / "b.wav").read_bytes().index(b"PEAK")
    assert (tmp_path / "b.wav").read_bytes()[peak + 12 : peak + 16] == bytes(4)  # no time of writing
    made = Source.open(tmp_path / "b.wav")
    assert (made.metadata["title"], made.metadata["artist"]) == ("Tünde", "Ann")
    assert read_recipe(tmp_path / "b.wav") == RECIPE


def test_new_samples_are_rounded_and_limited_to_full_scale(tmp_path):
    path, _ = write_source(tmp_path, "FLAC", "PCM_24", channels=1)
    source = Source.open(path)
    values = np.array([[2.0, -2.0, 0.3, 1.4 / 2**23, 1.6 / 2**23]])
    made = apply(source, [Patch(0, 5, values)])[0, :5] >> 8
    assert made.tolist() == [2**23 - 1, -(2**23), round(0.3 * 2**23), 1, 2]


def bad(start=0, stop=10, n=10, channels=2, value=0.0):
    return Patch(start, stop, np.full((channels, n), value))


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        ([bad(10, 10, 0)], "empty or reversed"),
        ([bad(101, 111)], "does not touch"),
        ([bad(-20, -10)], "does not touch"),
        ([bad(0, 10), bad(5, 15)], "0 to 10 and 5 to 15 overlap"),
        ([bad(n=9)], r"shape \(2, 10\), got \(2, 9\)"),
        ([bad(channels=1)], r"shape \(2, 10\), got \(1, 10\)"),
        ([bad(value=np.nan)], "NaN or infinity"),
    ],
)
def test_patches_that_do_not_fit_are_refused(tmp_path, patches, message):
    source = Source.of(np.zeros((2, 100)), 8000)
    with pytest.raises(ValueError, match=message):
        write_patched(tmp_path / "a.wav", source, patches)
    assert not list(tmp_path.iterdir())


def test_the_source_and_wrong_names_are_not_written(tmp_path):
    path, _ = write_source(tmp_path, "WAV", "PCM_16")
    (tmp_path / "link.wav").symlink_to(path)
    source, content = Source.open(path), path.read_bytes()
    for name in (path, tmp_path / "link.wav"):
        with pytest.raises(ValueError, match="is the source, which is never written to"):
            write_patched(name, source, [])
    with pytest.raises(ValueError, match=r"would hold WAV: its name must end in \.wav"):
        write_patched(tmp_path / "a.flac", source, [])
    with pytest.raises(ValueError, match=r"format must be one of wav, .* got 'ogg'"):
        output_form(source, "ogg")
    with pytest.raises(ValueError, match="FLAC files have the subtypes PCM_16, PCM_24, PCM_S8, got 'FLOAT'"):
        output_form(source, "flac", "FLOAT")
    assert path.read_bytes() == content
    assert sorted(os.listdir(tmp_path)) == ["link.wav", "source.wav"]


@pytest.mark.parametrize("form", [("WAV", "PCM_16"), ("FLAC", "PCM_24"), ("AIFF", "FLOAT")])
def test_a_full_disk_leaves_nothing(tmp_path, form):
    path, _ = write_source(tmp_path, *form, n=20_000)
    made = tmp_path / f"made.{SUFFIX[form[0]]}"
    with full_disk(2048), pytest.raises(OSError, match="File too large"):
        write_patched(made, Source.open(path), [])
    assert os.listdir(tmp_path) == [path.name]


def test_a_source_that_changes_meanwhile_is_noticed(tmp_path):
    path, _ = write_source(tmp_path, "WAV", "PCM_16")
    source = Source.open(path)
    write_source(tmp_path, "WAV", "PCM_16", seed=5)
    with pytest.raises(ValueError, match="changed since it was opened"):
        write_patched(tmp_path / "made.wav", source, [])
    assert os.listdir(tmp_path) == ["source.wav"]
