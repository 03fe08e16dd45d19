"""Folders as people have them: tables of other programs, names in other spellings, files that are no recordings."""

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicldm.data import analysis
from musicldm.data.clips import Clip, read_clip
from musicldm.data.collection import Collection, load_clips
from musicldm.data.prepare import PrepareConfig, prepare
from musicldm.data.shards import index_rows, recording_identity
from musicldm.train.diffusion.cache import fingerprint
from vocoder import MelConfig

RATE = 8000


def write(path, seconds=1.0, seed=0, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    waveform = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    soundfile.write(path, waveform, rate)
    return path


@pytest.fixture
def folder(tmp_path):
    for i in range(1, 5):
        write(tmp_path / f"a{i}.wav", seed=i)
    return tmp_path


def texts(folder):
    return {clip.path.name: clip.texts for clip in load_clips(folder, 1.0)}


def rows(*captions):
    return "".join(
        json.dumps({"file_name": f"a{i}.wav", "text": text}, ensure_ascii=False) + "\n"
        for i, text in enumerate(captions, start=1)
    )


@pytest.mark.parametrize(
    "table",
    [
        "file_name, text\na1.wav, one\na2.wav, two\n",
        " File_Name ,TEXT\na1.wav,one\na2.wav,two\n",
        "file_name\ttext\na1.wav\tone\na2.wav\ttwo\n",
        'file_name;Caption \n"a1.wav"; "one"\na2.wav;two;\n',
        "\ufefffile_name,texts\r\na1.wav,one\r\n\r\na2.wav,two\r\n",
    ],
)
def test_columns_are_found_whatever_their_case_and_spaces(folder, table):
    (folder / "metadata.csv").write_text(table)
    assert texts(folder) == {"a1.wav": ("one",), "a2.wav": ("two",)}
    (folder / "metadata.csv").rename(folder / "Metadata.CSV")
    assert texts(folder) == {"a1.wav": ("one",), "a2.wav": ("two",)}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('file_name,text\na1.wav,one\na2.wav,"two\na3.wav,three\na4.wav,four\n', "line 3.*quotation mark"),
        ('file_name,text\na1.wav,"one\na2.wav,"two"\n', "line 2.*quotation mark"),
        ('file_name,text\na1.wav,"one\na2.wav,two"\na3.wav,three\n', "line 2.*goes on over other rows"),
        ("file_name,text\na1.wav," + "x" * 200_000 + "\n", "line 2.*field larger"),
        ("name,text\na1.wav,one\n", "line 2, has no file_name, only name, text"),
        ("file_name,text,Text\na1.wav,one,two\n", "two columns that are called text"),
    ],
)
def test_tables_that_would_be_read_wrongly_are_refused(folder, table, message):
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(ValueError, match=message):
        load_clips(folder, 1.0)


def test_captions_may_have_lines_and_quotation_marks(folder):
    (folder / "metadata.csv").write_text('file_name,text\na1.wav,"slow,\n""sad"""\na2.wav,a 7" single\n')
    assert texts(folder) == {"a1.wav": ('slow,\n"sad"',), "a2.wav": ('a 7" single',)}


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_lines_end_at_newlines_only(folder, mark):
    (folder / "metadata.csv").write_text(f"file_name,text\na1.wav,solo{mark}piano\n", encoding="utf-8")
    assert texts(folder)["a1.wav"] == (f"solo{mark}piano",)
    line = json.dumps({"file_name": "a1.wav", "text": f"solo{mark}piano"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_text("\ufeff" + line + "\r\n\n", encoding="utf-8")
    assert texts(folder) == {"a1.wav": (f"solo{mark}piano",)}


@pytest.mark.parametrize("field", ["text", "caption", "texts"])
@pytest.mark.parametrize("value", [120, True, {"en": "x"}, "half \ud83c"])
def test_captions_that_are_no_text_are_refused(folder, field, value):
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "a2.wav", field: value}))
    with pytest.raises(ValueError, match=r"a2\.wav.*(must be strings|unpaired surrogate)"):
        load_clips(folder, 1.0)


def test_other_encodings_name_the_file(folder):
    for content in (rows("café").encode("latin-1"), rows("x").encode("utf-16")):
        (folder / "metadata.jsonl").write_bytes(content)
        with pytest.raises(ValueError, match=r"metadata\.jsonl is not in UTF-8"):
            load_clips(folder, 1.0)


def test_names_in_other_spellings(folder):
    write(folder / "sub" / "b.wav")
    write(folder / unicodedata.normalize("NFD", "é.wav"))
    names = ["./a1.wav", "sub/../a2.wav", "sub\\b.wav", unicodedata.normalize("NFC", "é.wav")]
    (folder / "metadata.jsonl").write_text("".join(json.dumps({"file_name": n, "text": "x"}) + "\n" for n in names))
    found = [row["file_name"] for row in Collection(folder).rows]
    assert found == ["a1.wav", "a2.wav", "sub/b.wav", unicodedata.normalize("NFD", "é.wav")]
    (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "A1.wav"}))
    with pytest.raises(FileNotFoundError, match=r"'A1\.wav', which is not there; a1\.wav differs by the case"):
        load_clips(folder, 1.0)


@pytest.mark.parametrize("again", ["a1.wav", "./a1.wav", "link.wav"])
def test_one_file_is_in_one_split(folder, again):
    os.symlink(folder / "a1.wav", folder / "link.wav")
    table = f"file_name,split\na1.wav,train\n{again},validation\na2.wav,train\n"
    (folder / "metadata.csv").write_text(table)
    with pytest.raises(ValueError, match=r"a1\.wav in the split train and .* in validation"):
        load_clips(folder, 1.0)
    (folder / "metadata.csv").write_text(f"file_name,split\na1.wav,validation\n{again},\na2.wav,train\n")
    assert [clip.split for clip in load_clips(folder, 1.0)] == ["validation", "validation", "train"]


def test_what_is_no_recording_is_passed_over_and_said(folder):
    (folder / "._a1.wav").write_bytes(b"\0\5\x16\7" + bytes(60))
    (folder / "empty.wav").touch()
    (folder / "text.wav").write_text("no audio")
    (folder / "folder.wav").mkdir()
    write(folder / "slow.wav", seconds=2000, rate=1).with_suffix(".m4a").touch()
    os.rename(folder / "a4.wav", os.fsencode(folder) + b"/caf\xe9.wav")
    collection = Collection(folder)
    clips = collection.clips(1.0)
    assert [os.fsencode(clip.path.name) for clip in clips] == [b"a1.wav", b"a2.wav", b"a3.wav", b"caf\xe9.wav"]
    assert collection.left_out.keys() == {"empty.wav", "text.wav", "slow.wav"}
    account = collection.account()
    assert account.startswith(f"{folder}: 4 of 8 recordings are used; 1 of formats that `musicldm prepare` reads")
    assert "empty.wav is an empty file" in account
    assert "slow.wav has a rate of 1 Hz" in account
    fingerprint(clips, MelConfig())
    for name in ("a1.wav", "a2.wav", "a3.wav", b"caf\xe9.wav"):
        os.unlink(os.path.join(os.fsencode(folder), os.fsencode(name)))
    with pytest.raises(FileNotFoundError, match=r"no recordings in .*empty\.wav is an empty file"):
        load_clips(folder, 1.0)


def test_recordings_left_out_and_columns_are_counted(folder):
    (folder / "metadata.csv").write_text("file_name,text,mood\na1.wav,one,sad\na2.wav,,sad\n")
    account = Collection(folder).account()
    assert "2 of 4 recordings are used; 2 that its metadata does not name (a3.wav, a4.wav)" in account
    assert "1 without a caption (a2.wav); columns that nothing reads: mood" in account
    assert "\n" not in account


def test_missing_captions_are_asked_about(folder, capsys):
    Collection(folder).check_captions()  # no metadata: nobody expects captions
    assert capsys.readouterr().err == ""
    Collection(folder).check_captions(wanted=True)
    assert "has no captions" in capsys.readouterr().err
    (folder / "metadata.csv").write_text("file_name,description\na1.wav,one\na2.wav,two\n")
    with pytest.raises(ValueError, match=r"metadata\.csv has the columns file_name, description.*captions=none"):
        Collection(folder).check_captions()


def test_clips_that_are_no_numbers_say_where(tmp_path):
    waveform = np.zeros(2 * RATE, np.float32)
    waveform[RATE + 80] = np.nan
    soundfile.write(tmp_path / "a.wav", waveform, RATE, subtype="FLOAT")
    with pytest.raises(ValueError, match=r"a\.wav holds nan at 1\.010 s"):
        read_clip(Clip(tmp_path / "a.wav", 1.0, 1.0, (), "train"), RATE, RATE)


def test_a_recording_that_was_replaced_is_another(folder):
    clips = load_clips(folder, 1.0)
    before, mel = recording_identity(folder / "a1.wav"), MelConfig()
    key = fingerprint(clips, mel)
    assert fingerprint(load_clips(folder, 1.0), mel) == key
    size = (folder / "a1.wav").stat().st_size
    write(folder / "a1.wav", seed=77)
    assert (folder / "a1.wav").stat().st_size == size
    assert recording_identity(folder / "a1.wav") != before
    assert fingerprint(clips, mel) != key


def counted(monkeypatch):
    """Which recordings are analysed from here on."""
    done = []

    def analyse(waveform, rate, tracker):
        done.append(analysis.digest_of(waveform))
        return {
            "digest": done[-1],
            "duration_s": len(waveform) / rate,
            "tracker": tracker,
            "beats_s": [],
            "downbeats_s": [],
            "beats_per_bar": 0,
            "tempo_bpm": 0.0,
            "confidence": 0.0,
            "loudness_lufs": [],
        }

    monkeypatch.setattr(analysis, "analyse", analyse)
    return done


def test_analyses_follow_recordings_and_metadata(folder, monkeypatch):
    done = counted(monkeypatch)
    analysis.analyse_collection(folder)
    write(folder / "a1.wav", seed=77)
    os.utime(folder / "a2.wav", ns=(1, 1))  # as a copy has another time
    (folder / "metadata.csv").write_text("file_name,piece_id\n" + "".join(f"a{i}.wav,one\n" for i in range(1, 5)))
    found = analysis.analyse_collection(folder)
    assert len(done) == 5
    assert found[0].digest == done[-1]
    assert {one.recording.group for one in found} == {"one"}
    analysis.analyse_collection(folder)
    assert len(done) == 5


def test_analyses_by_earlier_versions_count_while_recordings_are_older(folder, monkeypatch):
    done, file = counted(monkeypatch), folder / analysis.ANALYSIS_FILE
    analysis.analyse_collection(folder)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        del line["identity"]
        line["digest"] = "of another program"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    analysis.analyse_collection(folder)
    assert len(done) == 4
    write(folder / "a3.wav", seed=77)
    os.utime(folder / "a3.wav", ns=(file.stat().st_mtime_ns + 1,) * 2)
    analysis.analyse_collection(folder)
    assert len(done) == 5


@pytest.mark.slow
def test_prepare_lists_what_it_cannot_use(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    good = write(folder / "good.wav", 2.0).read_bytes()
    waveform = 0.1 * np.random.default_rng(1).standard_normal(2 * RATE)
    write(folder / "sub" / "b.wav", 2.0, seed=2)
    soundfile.write(folder / "anti.wav", np.stack([waveform, -waveform], axis=1), RATE)
    soundfile.write(folder / "silent.wav", np.zeros(2 * RATE), RATE)
    soundfile.write(folder / "constant.wav", np.full(2 * RATE, 0.3), RATE)
    (folder / "cut.wav").write_bytes(good[: len(good) * 9 // 10])
    (folder / "._good.wav").write_bytes(good)
    (folder / "half.wav").write_bytes(good)
    table = [
        {"file_name": "./good.wav", "text": "solo violin"},
        {"file_name": "good.wav", "text": "again"},
        {"file_name": "sub\\b.wav", "Text": "two\u2028lines"},
        {"file_name": "half.wav", "text": "half \ud83c"},
        {"file_name": "GONE.wav"},
        {"file_name": "notes.txt"},
    ]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    (folder / "notes.txt").write_text("no audio")
    config = PrepareConfig(tracker="librosa")
    assert prepare(folder, out, config).recordings == 2
    told = f"{folder}: 7 recordings; 2 more in the metadata; 4 that the metadata does not name"
    assert told in capsys.readouterr().err
    assert {row["file_name"]: row["texts"] for row in index_rows(out)} == {
        "good.wav": ["solo violin", "again"],
        "sub/b.wav": ["two\u2028lines"],
    }
    errors = {row["file_name"]: row["error"] for row in map(json.loads, (out / "errors.jsonl").open())}
    assert errors.keys() == {"anti.wav", "silent.wav", "constant.wav", "cut.wav", "half.wav", "GONE.wav", "notes.txt"}
    assert "cancel" in errors["anti.wav"]
    assert "silent" in errors["silent.wav"]
    assert "ends after 1.8" in errors["cut.wav"]
    assert "its header states 2.00 s" in errors["cut.wav"]
    assert "unpaired surrogate" in errors["half.wav"]
    assert errors["GONE.wav"] == "is named in the metadata, and not there"
    assert "none of .wav" in errors["notes.txt"]
    assert prepare(folder, out, config).recordings == 2  # what is done is done
    write(folder / "good.wav", 2.0, seed=9)
    with pytest.raises(ValueError, match="made of other files"):
        prepare(folder, out, config)


def test_one_file_in_two_splits_is_not_prepared(tmp_path):
    write(tmp_path / "a.wav")
    (tmp_path / "metadata.csv").write_text("file_name,split\na.wav,train\n./a.wav,test\n")
    with pytest.raises(ValueError, match=r"a\.wav in the splits train and test"):
        prepare(tmp_path, Path(tmp_path, "out"), PrepareConfig(tracker="librosa"))
