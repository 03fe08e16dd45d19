"""The training-set index and the check against it, on a small collection with planted copies."""

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicldm import MusicLDMPipeline
from musicldm.audio import read_audio, write_audio
from musicldm.cli import main
from musicldm.data.collection import Collection
from musicldm.data.prepare.index import IndexWriter
from musicldm.data.shards import INDEX_FILE, ShardWriter
from musicldm.generate.reconstruct import reconstruct
from musicldm.models.clap import clap_feature_extractor
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.novelty.alignment import best_match, pitch_frames
from musicldm.novelty.build import build_index, recording_infos
from musicldm.novelty.check import check, record
from musicldm.novelty.index import NoveltyIndex, make_faiss
from tests.helpers.melodies import CLIP_S, RATE, melody, same_index

ROOT = Path(__file__).parents[2]
PIECES = 24


@pytest.fixture(scope="module")
def embedder(tiny_parts):
    front_end = clap_feature_extractor(RATE, CLIP_S, hop_length=640, n_mels=16, f_max=8000.0)
    return ClapEmbedder(tiny_parts["text_encoder"], front_end)


@pytest.fixture(scope="module")
def model(embedder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clap")
    embedder.clap.save_pretrained(folder / "text_encoder")
    embedder.feature_extractor.save_pretrained(folder / "feature_extractor")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for seed in range(PIECES):
        write_audio(folder / f"{seed}.wav", melody(seed), RATE)
        rows.append({"file_name": f"{seed}.wav", "title": f"Melody {seed}", "licence": "CC0", "piece_id": f"p{seed}"})
    write_audio(folder / "silent.wav", np.zeros(CLIP_S * RATE), RATE)
    rows.append({"file_name": "silent.wav"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def index(data, embedder, tmp_path_factory):
    return build_index(data, tmp_path_factory.mktemp("index") / "index", embedder, progress=False)


def test_index_holds_titles_times_and_licences(index, data):
    assert len(index) == PIECES  # not the silent one
    assert index.recordings[3] == {"file": "3.wav", "title": "Melody 3", "licence": "CC0", "offset_s": 0.0}
    assert index.about["base_rate"]["clips"] == PIECES
    assert not index.folder.with_name("index.partial").exists()


def test_a_clip_of_the_index_is_its_own_nearest(index, embedder):
    found = check(melody(7), RATE, index, embedder)
    assert found.verdict == "copy"
    assert found.similarity == pytest.approx(1.0, abs=1e-3)
    neighbour, start_s = found.nearest[0]
    assert (neighbour.recording["title"], neighbour.start_s, start_s) == ("Melody 7", 0.0, 0.0)


def test_a_phrase_inside_new_music_is_found_with_its_place(index, embedder):
    phrase = melody(5)[1 * RATE : 4 * RATE]
    new = np.concatenate([melody(100)[: 2 * RATE], phrase])
    found = check(new, RATE, index, embedder)
    assert found.verdict == "copy"
    told = record("new.wav", found, index)["passage"]
    assert told["recording"] == "5.wav"
    assert told["start_s"] - 1 == pytest.approx(told["query_start_s"] - 2, abs=0.3)


@pytest.mark.parametrize("seed", range(200, 204))
def test_other_music_is_no_copy(index, embedder, seed):
    assert check(melody(seed), RATE, index, embedder).verdict != "copy"


@pytest.mark.slow
@pytest.mark.parametrize("semitones", [-2, 0, 2])
def test_transposed_slowed_and_noisy_copies_are_aligned(semitones):
    rng = np.random.default_rng(0)
    originals = [pitch_frames(melody(seed), RATE) for seed in range(10)]
    moved = melody(4, semitones=semitones)
    slower = np.interp(np.arange(0, len(moved) - 1, 1 / 1.03), np.arange(len(moved)), moved)
    # played slower by 3 % means 3 % lower as well: half a semitone, between two bands
    noisy = moved + rng.normal(size=len(moved)) * moved.std() * 10 ** (-10 / 20)
    for copy in (moved, 0.1 * moved, noisy, slower):
        found = best_match(pitch_frames(copy.astype(np.float32), RATE), originals)
        assert found.candidate == 4
        assert found.score > 0.5
    found = best_match(pitch_frames(moved, RATE), originals)
    assert (found.semitones, found.tempo) == (semitones, 1.0)
    others = [pitch_frames(melody(seed), RATE) for seed in range(20, 30)]
    assert best_match(pitch_frames(moved, RATE), others).score < found.score / 1.5


@pytest.mark.slow
def test_real_music_that_a_model_plays_by_heart_is_aligned():
    """Five seconds of recordings, as they come back from the bundled autoencoder and vocoder."""
    shared = os.environ.get("MUSICLDM_SHARED")
    if not shared:
        pytest.skip("needs recordings: set MUSICLDM_SHARED")
    pipeline = MusicLDMPipeline.from_pretrained("mini")
    originals, played = [], []
    for path in sorted(path for path in (ROOT / shared / "audio").iterdir() if path.suffix in (".ogg", ".flac")):
        rate = pipeline.sampling_rate
        waveform = read_audio(path, rate)[0][20 * rate : 25 * rate]
        if len(waveform) == 5 * rate:
            originals.append(pitch_frames(waveform, rate))
            played.append(pitch_frames(reconstruct(waveform, pipeline.vae, pipeline.vocoder).waveform, rate))
    assert len(originals) > 8
    own = [best_match(query, [original]).score for query, original in zip(played, originals, strict=True)]
    others = [best_match(query, originals[:i] + originals[i + 1 :]).score for i, query in enumerate(played)]
    assert min(own) > 1.3 * max(others)


def test_large_collections_are_searched_in_cells():
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(20_500, 16)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    index = make_faiss(embeddings)
    queries = embeddings[:50] + 0.02 * rng.normal(size=(50, 16)).astype(np.float32)
    assert (index.search(queries, 1)[1][:, 0] == np.arange(50)).mean() > 0.95
    assert index.nprobe < index.nlist


def test_building_goes_on_where_it_stopped(data, embedder, tmp_path, monkeypatch, index):
    monkeypatch.setattr("musicldm.novelty.build.CLIPS_A_PART", 10)
    calls = []

    class Stops(ClapEmbedder):
        def __call__(self, waveforms, sample_rate):
            calls.append(len(waveforms))
            if sum(calls) > 45 and limited:
                raise KeyboardInterrupt
            return super().__call__(waveforms, sample_rate)

    limited, stops = True, Stops(embedder.clap, embedder.feature_extractor)
    with pytest.raises(KeyboardInterrupt):
        build_index(data, tmp_path / "index", stops, progress=False)
    with pytest.raises(FileNotFoundError, match="never finished"):
        NoveltyIndex(tmp_path / "index")
    calls.clear()
    limited = False
    again = build_index(data, tmp_path / "index", stops, progress=False)
    assert sum(calls) == (PIECES - 10) * (1 + 3) + PIECES * 7  # the first ten, each with 3 windows, were kept
    assert same_index(again, index)
    with pytest.raises(FileExistsError, match="--out"):
        build_index(data, tmp_path / "index", embedder)
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "mine.partial" / "precious").touch()
    with pytest.raises(FileExistsError, match="holds precious"):
        build_index(data, tmp_path / "mine", embedder)
    assert (tmp_path / "mine.partial" / "precious").exists()


@pytest.fixture(scope="module")
def shards(data, tmp_path_factory):
    """What `musicldm prepare` makes of the collection: its recordings in shards, its pieces as groups."""
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder / "shards", 400_000) as writer, IndexWriter(folder / INDEX_FILE) as table:
        for i, row in enumerate(map(json.loads, (data / "metadata.jsonl").read_text().splitlines())):
            flac, (samples, rate) = io.BytesIO(), soundfile.read(data / row["file_name"], dtype="int16")
            soundfile.write(flac, samples, rate, "PCM_16", format="FLAC")
            shard, key = writer.next_name(len(flac.getvalue()))
            writer.write(key, {"flac": flac.getvalue()})
            about = {"file_name": row["file_name"], "part": 0, "group": row.get("piece_id", row["file_name"])}
            about |= {"shard": shard, "member": f"{key}.flac", "duration_s": len(samples) / rate}
            table.write(
                about | {"licence": row.get("licence"), "texts": [], "split": "train" if i % 4 else "validation"}
            )
    assert len(list((folder / "shards").glob("*.tar"))) > 1
    return folder


@pytest.mark.slow
def test_shards_give_the_index_of_the_folder_that_they_hold(shards, index, embedder, tmp_path, capsys, model):
    assert same_index(build_index(shards, tmp_path / "index", embedder, progress=False), index)
    part = build_index(shards, tmp_path / "train", embedder, progress=False, split="train")
    assert len(part) == PIECES * 3 // 4
    assert "0.wav" not in {row["file"] for row in part.recordings}
    licences = {row["file"]: row.get("licence") for row in index.recordings}
    assert any(licences.values())
    assert {row["file"]: row.get("licence") for row in part.recordings}.items() <= licences.items()
    command = ["novelty", "index", str(shards), "--model", str(model), "--json", "--out"]
    assert main([*command, str(tmp_path / "again"), "--split", "train"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == len(part)
    with pytest.raises(FileNotFoundError, match="split"):
        build_index(shards, tmp_path / "none", embedder, split="test")


def test_collections_without_a_base_rate_are_refused(embedder, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    write_audio(tmp_path / "one" / "a.wav", melody(0), RATE)
    with pytest.raises(ValueError, match="one piece"):
        build_index(tmp_path / "one", tmp_path / "index", embedder, progress=False)
    for i in range(2):
        write_audio(tmp_path / "two" / f"{i}.wav", melody(i)[:RATE], RATE)
    with pytest.raises(ValueError, match="longer recordings"):
        build_index(tmp_path / "two", tmp_path / "index", embedder, progress=False)


FILES = ["clips.faiss", "frames.npy", "recordings.jsonl", "index.json", "windows.faiss", "windows.npz"]


@pytest.mark.parametrize("name", FILES)
def test_damaged_indexes_are_refused(index, tmp_path, name):
    copy = shutil.copytree(index.folder, tmp_path / "index")
    content = (copy / name).read_bytes()
    (copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="damaged"):
        NoveltyIndex(copy)
    if name != "index.json":
        (copy / name).unlink()
        with pytest.raises(ValueError, match="missing"):
            NoveltyIndex(copy)
    (copy / "index.json").unlink()
    with pytest.raises(FileNotFoundError, match="no novelty index"):
        NoveltyIndex(copy)


def test_bad_queries_are_refused(index, embedder, tiny_parts):
    with pytest.raises(ValueError, match="silent"):
        check(np.zeros(3 * RATE), RATE, index, embedder)
    with pytest.raises(ValueError, match="too short"):
        check(melody(1)[:RATE], RATE, index, embedder)
    with pytest.raises(ValueError, match="dimensions"):
        index.search(np.ones((1, 3)))
    other = ClapEmbedder(tiny_parts["text_encoder"], embedder.feature_extractor)
    other.name = "clap-other"
    with pytest.raises(ValueError, match="clap-other"):
        check(melody(1), RATE, index, other)


def test_command(data, model, tmp_path, capsys):
    out = tmp_path / "index"
    assert main(["novelty", "index", str(data), "--out", str(out), "--model", str(model), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == PIECES
    write_audio(tmp_path / "copy.wav", melody(2), RATE)
    write_audio(tmp_path / "silent.wav", np.zeros(3 * RATE), RATE)
    options = ["--index", str(out), "--model", str(model), "--json"]
    assert main(["novelty", "check", str(tmp_path / "copy.wav"), *options, "--figures", str(tmp_path / "figures")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["nearest"][0]["recording"]) == ("copy", "2.wav")
    assert {"recording", "start_s", "query_start_s", "similarity"} <= set(told["nearest"][0])
    assert (tmp_path / "figures" / "copy_match.png").stat().st_size > 10_000
    files = [str(tmp_path / name) for name in ("silent.wav", "none.wav", "copy.wav")]
    assert main(["novelty", "check", *files, *options]) == 2
    out_text, err = capsys.readouterr()
    assert json.loads(out_text)["file"] == files[2]
    assert "silent" in err
    assert "none.wav" in err
    assert main(["novelty", "index", str(data), "--out", str(out), "--model", str(model)]) == 2
    assert main(["novelty", "check", str(tmp_path / "copy.wav"), *options[2:], "--index", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_offsets_of_a_table_are_numbers(tmp_path):
    write_audio(tmp_path / "a.wav", melody(0), RATE)
    (tmp_path / "metadata.csv").write_text("file_name,text,start_s\na.wav,a melody,12.5\n")
    assert recording_infos(Collection(tmp_path))[tmp_path / "a.wav"].about["offset_s"] == 12.5
    (tmp_path / "metadata.csv").write_text("file_name,text,start_s\na.wav,a melody,late\n")
    with pytest.raises(ValueError, match=r"start_s of a\.wav must be seconds, got 'late'"):
        recording_infos(Collection(tmp_path))
