"""Work on many files: processes that die, a Ray cluster of two machines, and that neither changes a result."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicldm.audio import write_audio
from musicldm.audio.workers import Crash, Workers
from musicldm.cli import main
from musicldm.data.cluster import map_on_cluster
from musicldm.models.clap import clap_feature_extractor
from musicldm.models.clap_embedder import ClapEmbedder
from musicldm.novelty.build import build_index
from tests.helpers.commands import succeeds
from tests.helpers.fragile import FragileMeasure, Where, fails_once, fragile_square
from tests.helpers.melodies import CLIP_S, RATE, melody, same_index
from tests.helpers.rhythm import drum_track, needs_madmom

pytestmark = pytest.mark.slow


def needs_ray(test):
    """Skip ``test`` without Ray, except where MUSICLDM_SHARED says that everything should be there."""
    missing = importlib.util.find_spec("ray") is None and not os.environ.get("MUSICLDM_SHARED")
    return pytest.mark.skipif(missing, reason="needs Ray: run `pip install 'musicldm[ray]'`")(test)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two drum tracks and a file that is no music."""
    folder = tmp_path_factory.mktemp("recordings")
    for bpm in (100, 130):
        waveform, _, _ = drum_track(bpm, 4)
        soundfile.write(folder / f"{bpm}.flac", waveform, 22_050)
    (folder / "bad.mp3").write_text("not music\n" * 100)
    return folder


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray cluster of a head without processors and two machines with one each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_raylet_start_wait_time_s", "180")  # where other programs keep all processors busy
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)  # where the functions are
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
        for _ in range(2):
            cluster.add_node(num_cpus=1, object_store_memory=80_000_000)
        yield cluster.address
        cluster.shutdown()


def contents(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_process_that_dies_costs_one_item():
    with Workers(fragile_square, 2) as workers:
        found = dict(workers.map([1, 2, 3, 4]))
        assert found.pop(2) == Crash("ended the process that read it, 2 times (SIGSEGV)")
        assert found == {0: 1, 1: 4, 3: 16}
        with pytest.raises(LookupError, match="no square of 5"):
            list(workers.map([5, 1, 5]))
        assert sorted(workers.map([6, 7])) == [(0, 36), (1, 49)]  # no answers that were left from before
    assert not any(child.process for child in workers.children)
    assert list(workers.map([])) == []


def test_an_item_is_tried_again(tmp_path):
    with Workers(fails_once) as workers:
        assert list(workers.map([tmp_path / "tried"])) == [(0, "done")]


@needs_madmom
def test_a_file_that_kills_its_reader_costs_one_line(folder, tmp_path, monkeypatch, capsys):
    straight = tmp_path / "straight"
    succeeds(capsys, "prepare", folder, "--out", straight, "--tracker", "librosa", "--workers", 1)
    monkeypatch.setattr("musicldm.data.prepare.run.Measure", FragileMeasure)
    (tmp_path / "in").mkdir()
    for path in folder.iterdir():
        (tmp_path / "in" / path.name).write_bytes(path.read_bytes())
    soundfile.write(tmp_path / "in" / "fatal.wav", np.zeros(22_050), 22_050)
    out = tmp_path / "out"
    (record,) = succeeds(capsys, "prepare", tmp_path / "in", "--out", out, "--tracker", "librosa", "--workers", 2)
    assert (record["recordings"], record["failed"]) == (2, 2)
    lines = (out / "errors.jsonl").read_text().splitlines()
    assert lines[1] == '{"file_name": "fatal.wav", "error": "ended the process that read it, 2 times (SIGSEGV)"}'
    assert lines[0] in (straight / "errors.jsonl").read_text()
    assert (out / "index.parquet").read_bytes() == (straight / "index.parquet").read_bytes()


@needs_ray
def test_functions_run_on_all_machines_of_a_cluster(cluster, tmp_path):
    found = dict(map_on_cluster(Where(tmp_path), range(12), cluster))
    assert sorted(found) == list(range(12))
    assert all(found[i][2] == i for i in found)
    assert len({machine for machine, _, _ in found.values()}) == 2
    assert max(calls for _, calls, _ in found.values()) > 1  # one object serves many items
    with pytest.raises(LookupError, match="-1 is negative"):
        list(map_on_cluster(Where(tmp_path), [1, -1], cluster))
    assert list(map_on_cluster(Where(tmp_path), [], cluster)) == []


@needs_ray
@needs_madmom
def test_a_cluster_prepares_the_same_bytes(cluster, folder, tmp_path, capsys):
    run = ("prepare", folder, "--out")
    expected = succeeds(capsys, *run, tmp_path / "one", "--workers", 1)
    (made,) = succeeds(capsys, *run, tmp_path / "many", "--ray", cluster)
    assert made == expected[0] | {"folder": str(tmp_path / "many")}
    assert made["recordings"] == 2
    assert contents(tmp_path / "many") == contents(tmp_path / "one")
    assert len(contents(tmp_path / "one")) == 4


@needs_ray
def test_a_cluster_survives_a_file_that_kills_its_reader(cluster, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("musicldm.data.prepare.run.Measure", FragileMeasure)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "100.flac").write_bytes((folder / "100.flac").read_bytes())
    soundfile.write(tmp_path / "in" / "fatal.wav", np.zeros(22_050), 22_050)
    run = ("prepare", tmp_path / "in", "--out", tmp_path / "out", "--tracker", "librosa", "--ray", "auto")
    (made,) = succeeds(capsys, *run)
    assert (made["recordings"], made["failed"]) == (1, 1)
    assert "SIGSEGV" in (tmp_path / "out" / "errors.jsonl").read_text()


@needs_ray
def test_no_cluster_is_one_error(folder, tmp_path, capsys):
    for address, told in (("here", "HOST:PORT or auto, got 'here'"), ("127.0.0.1:1", "no Ray cluster at 127.0.0.1:1")):
        assert main(["prepare", str(folder), "--out", str(tmp_path / "out"), "--ray", address]) == 2
        *account, error = capsys.readouterr().err.splitlines()
        assert len(account) == 1  # what the folder holds
        assert error.startswith("musicldm: error: ")
        assert told in error


@needs_ray
def test_an_index_made_on_a_cluster_is_that_of_one_machine(cluster, tiny_parts, tmp_path, monkeypatch):
    monkeypatch.setattr("musicldm.novelty.build.CLIPS_A_PART", 3)
    (tmp_path / "data").mkdir()
    for seed in range(10):
        write_audio(tmp_path / "data" / f"{seed}.wav", melody(seed), RATE)
    front_end = clap_feature_extractor(RATE, CLIP_S, hop_length=640, n_mels=16, f_max=8000.0)
    embedder = ClapEmbedder(tiny_parts["text_encoder"], front_end)
    one = build_index(tmp_path / "data", tmp_path / "one", embedder, progress=False)
    many = build_index(tmp_path / "data", tmp_path / "many", embedder, progress=False, ray=cluster)
    assert same_index(many, one)
    with pytest.raises(ConnectionError, match="no Ray cluster"):
        build_index(tmp_path / "data", tmp_path / "none", embedder, progress=False, ray="127.0.0.1:1")
    assert not (tmp_path / "none").exists()
