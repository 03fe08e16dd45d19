"""Models that are given away: the card, the index of the training set, and what a hub would get."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from diffusers.utils import hub_utils
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError

from musicldm import MusicLDMPipeline
from musicldm.cli import main
from musicldm.config import VAEConfig
from musicldm.models.clap import clap_feature_extractor
from musicldm.novelty import CopyGuard, attach_index, index_of
from musicldm.novelty.carried import MEASURES
from musicldm.pipelines import hub as publish
from musicldm.pipelines.hub import CARD, NOVELTY_INDEX, with_section
from musicldm.train import run
from musicldm.train.card import training_card
from tests.helpers.melodies import melody

TINY = [
    *("device=cpu", "steps=2", "batch_size=2", "trackers=[]", "validate_every=2", "validation_batches=1", "workers=0"),
    *("mel.sample_rate=8000", "mel.n_fft=256", "mel.hop_length=80", "mel.n_mels=16", "mel.f_max=4000"),
    *("mel.clip_s=0.32", "validation_prompts=[waltz]"),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Six melodies of 3 s with a table about them."""
    folder = tmp_path_factory.mktemp("data")
    for i in range(6):
        soundfile.write(folder / f"{i}.wav", melody(i), 16_000)
    rows = [f"{i}.wav,a tune,{'CC0' if i < 4 else 'CC BY 4.0'}" for i in range(6)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text,licence", *rows]))
    return folder


@pytest.fixture(scope="module")
def trained(tiny_parts, data, tmp_path_factory):
    """A model trained with its index beside it; its CLAP hears 5 s, enough for an index."""
    folder = tmp_path_factory.mktemp("model")
    front_end = clap_feature_extractor(16_000, 5, hop_length=640, n_mels=16, f_max=8000.0)
    MusicLDMPipeline(**tiny_parts | {"feature_extractor": front_end}).save_pretrained(folder)
    overrides = [f"init={folder}", "index=true", *TINY]
    return run("diffusion", None, data, tmp_path_factory.mktemp("run") / "run", overrides=overrides)


@pytest.fixture
def hub(monkeypatch):
    """What would go over the network: the files and texts of each upload, and the cards that the hub has."""
    taken = SimpleNamespace(uploads=[], cards={}, created=[])

    def create(repo_id, private=None, token=None, exist_ok=False):
        taken.created.append((repo_id, private))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload(repo_id, folder_path, **options):
        files = sorted(path.relative_to(folder_path) for path in Path(folder_path).rglob("*") if path.is_file())
        card = Path(folder_path, CARD).read_text(encoding="utf-8")
        taken.uploads.append({"repo_id": repo_id, "files": {str(file) for file in files}, "card": card, **options})
        return "address"

    def load(repo_id, token=None):
        if repo_id in taken.cards:
            return ModelCard(taken.cards[repo_id])
        raise EntryNotFoundError("no card")

    monkeypatch.setattr(hub_utils, "create_repo", create)
    monkeypatch.setattr(hub_utils, "upload_folder", upload)
    monkeypatch.setattr(ModelCard, "load", load)
    return taken


def test_a_trained_model_has_a_card_that_a_hub_can_read(trained):
    card = ModelCard((trained / CARD).read_text(encoding="utf-8"))
    assert card.data.to_dict()["pipeline_tag"] == "text-to-audio"
    assert "text-to-music" in card.data.tags
    assert "| `steps` | 2 | 100000 |" in card.text
    assert "of 5 recordings" in card.text  # the sixth is held out
    assert "| CC0 | 4 |" in card.text
    assert "| CC BY 4.0 | 1 |" in card.text
    metrics = [json.loads(line) for line in (trained.parent / "metrics.jsonl").read_text().splitlines()]
    (validation,) = [row for row in metrics if row["group"] == "validation"]
    assert f"| loss | {validation['loss']:.4g} |" in card.text
    assert str(trained.parent.parent) not in card.text  # nothing of this machine
    assert "| vae | `AutoencoderKL` |" in card.text


def test_the_card_has_the_numbers_of_the_weights_that_are_exported(tmp_path):
    """Among them a row from before the training, as of a concept, and a validation that gave no number."""
    losses = {0: 0.1, 10: 0.5, 20: math.nan, 30: 0.3, 40: 0.4}
    rows = [{"step": step, "group": "validation", "loss": loss, "other": -loss} for step, loss in losses.items()]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for export, step in (("last", 40), ("best", 30)):
        card = training_card(VAEConfig(export=export), [], tmp_path, tmp_path, {})
        assert f"at the {export} validation:\n\n| Step {step} | |" in card
        assert f"| loss | {losses[step]} |\n| other | {-losses[step]} |" in card


def test_the_card_tells_what_the_index_holds(trained, tmp_path):
    card = (trained / CARD).read_text(encoding="utf-8")
    about = json.loads((trained / NOVELTY_INDEX / "index.json").read_text())
    assert f"holds {about['clips']} clips of 6 recordings" in card
    assert about["embedder"] in card
    for name, meaning in MEASURES.items():
        if f"{name}_99" in about["base_rate"]:
            values = [about["base_rate"][f"{name}_{percent}"] for percent in (50, 95, 99)]
            assert f"| {meaning} | " + " | ".join(f"{value:.3f}" for value in values) + " |" in card
    assert card.index("## Numbers") < card.index("## Novelty") < card.index("## Licence")
    pipeline = MusicLDMPipeline.from_pretrained(trained)
    pipeline.card, pipeline.companions = None, {}
    attach_index(pipeline, trained / NOVELTY_INDEX)  # an index from elsewhere
    pipeline.save_pretrained(tmp_path)
    assert index_of(MusicLDMPipeline.from_pretrained(tmp_path)) == tmp_path / NOVELTY_INDEX
    assert f"holds {about['clips']} clips" in (tmp_path / CARD).read_text(encoding="utf-8")


def test_a_section_is_replaced_or_added_before_the_licence():
    card = "# A\n\n## Numbers\n\n1\n\n## Licence\n\nCC0\n"
    once = with_section(card, "Evaluation", "a \\1\n\n| b |\n")
    assert once == "# A\n\n## Numbers\n\n1\n\n## Evaluation\n\na \\1\n\n| b |\n\n## Licence\n\nCC0\n"
    assert with_section(once, "Evaluation", "a \\1\n\n| b |") == once
    assert with_section(once, "Evaluation", "c") == once.replace("a \\1\n\n| b |", "c")
    assert with_section("# A\n", "Evaluation", "c") == "# A\n\n## Evaluation\n\nc\n"
    assert with_section("# A\n\n## Evaluation\n\nb\n", "Evaluation", "c") == "# A\n\n## Evaluation\n\nc\n"


def test_an_evaluation_becomes_part_of_the_card(trained, tmp_path, capsys):
    model = shutil.copytree(trained, tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a tune\na waltz\n")
    call = ["evaluate", "--model", model, "--prompts", tmp_path / "prompts.txt", "--index", model / NOVELTY_INDEX]
    call += ["--seconds", 3, "--steps", 1, "--no-tempo", "--out", tmp_path / "out"]
    assert main([*map(str, call)]) == 0
    before = (model / CARD).read_text(encoding="utf-8")
    metrics = tmp_path / "out" / "metrics.json"
    write = ["evaluate", "--model", str(model), "--card", str(metrics)]
    for _ in range(2):  # the second time in the place of the first
        assert main(write) == 0
    after = (model / CARD).read_text(encoding="utf-8")
    assert after.count("## Evaluation") == 1
    assert "| SIM_AA@90: share of clips with a cosine above 0.90 to a training clip |" in after
    assert "| SIM_AA@95: share of clips with a cosine above 0.95 to a training clip |" in after
    assert "2 clips of revision" in after
    assert str(tmp_path) not in after
    assert after.replace(after[after.index("## Evaluation") : after.index("## Licence")], "") == before
    assert MusicLDMPipeline.from_pretrained(model).card == after

    made = json.loads(metrics.read_text())
    capsys.readouterr()
    for changes, of, message in (
        ({}, "mini", "is not one"),
        ({"audio": "recordings"}, model, "is an evaluation of recordings"),
        ({"adapters": []}, model, "with adapters"),
        ({"revision": "0" * 12}, model, "is of a model of revision 000000000000"),
    ):
        metrics.write_text(json.dumps(made | {"settings": made["settings"] | changes}))
        assert main(["evaluate", "--model", str(of), "--card", str(metrics)]) == 2
        assert message in capsys.readouterr().err


@pytest.fixture
def downloaded(trained, tmp_path) -> Path:
    """The hub's cache after `MusicLDMPipeline.download`: neither card nor index."""
    repository = tmp_path / "hub" / "models--someone--music"
    left_out = shutil.ignore_patterns(NOVELTY_INDEX, CARD)
    snapshot = shutil.copytree(trained, repository / "snapshots" / ("0" * 40), ignore=left_out)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_a_model_from_the_hub_fetches_index_and_card_when_asked(trained, downloaded, tmp_path, monkeypatch):
    asked = []

    def download(repo_id, revision, cache_dir, allow_patterns, **options):
        assert (repo_id, revision, cache_dir, options) == ("someone/music", "0" * 40, tmp_path / "hub", {"token": "t"})
        asked.extend(allow_patterns)
        for path in [path for pattern in allow_patterns for path in trained.glob(pattern)]:
            target = downloaded / path.relative_to(trained)
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
        return str(downloaded)

    monkeypatch.setattr(publish, "snapshot_download", download)
    pipeline = MusicLDMPipeline.from_pretrained("someone/music", cache_dir=tmp_path / "hub", token="t")
    pipeline.set_progress_bar_config(disable=True)
    assert not pipeline.companions
    call = {"prompt": "a tune", "audio_length_in_s": 3, "num_inference_steps": 2, "seed": 0}
    pipeline(**call)
    assert asked == []
    guard = CopyGuard(pipeline)
    assert guard(**call, mode="report").novelty[0]["nearest"]
    CopyGuard(pipeline)(**call, mode="report")
    assert asked == [f"{NOVELTY_INDEX}/*"]
    pipeline.save_pretrained(tmp_path / "saved")
    assert asked == [f"{NOVELTY_INDEX}/*", CARD]
    assert (tmp_path / "saved" / CARD).read_text() == (trained / CARD).read_text()
    assert (tmp_path / "saved" / NOVELTY_INDEX / "index.json").is_file()
    again = MusicLDMPipeline.from_pretrained("someone/music", cache_dir=tmp_path / "hub", local_files_only=True)
    assert index_of(again) == downloaded / NOVELTY_INDEX  # it stays in the cache


def test_an_index_that_the_hub_does_not_give(downloaded, tmp_path, monkeypatch):
    """Offline, of a repository without one, or refused; what needs no index goes on."""
    pipeline = MusicLDMPipeline.from_pretrained("someone/music", cache_dir=tmp_path / "hub", local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    call = {"prompt": "a tune", "audio_length_in_s": 3, "num_inference_steps": 1, "seed": 0}
    with pytest.raises(ValueError, match=r"needs an index of the training set, .* carries none; give the folder"):
        CopyGuard(pipeline)

    def refuse(**options):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(publish, "snapshot_download", refuse)
    with pytest.raises(OSError, match=r"index of someone/music cannot be fetched \(no network\); give the folder of"):
        CopyGuard(pipeline)
    assert pipeline(**call).novelty is None
    pipeline.save_pretrained(tmp_path / "saved")
    assert "Nothing is recorded" in (tmp_path / "saved" / CARD).read_text()


def test_the_card_and_the_index_stay_with_the_model(trained, tmp_path):
    pipeline = MusicLDMPipeline.from_pretrained(trained)
    pipeline.save_pretrained(tmp_path / "a")
    again = MusicLDMPipeline.from_pretrained(tmp_path / "a")
    again.set_progress_bar_config(disable=True)
    assert again.card == pipeline.card == (tmp_path / "a" / CARD).read_text(encoding="utf-8")
    again.save_pretrained(tmp_path / "a")  # onto itself
    files = {path.name for path in (tmp_path / "a" / NOVELTY_INDEX).iterdir()}
    assert files == {path.name for path in (trained / NOVELTY_INDEX).iterdir()} >= {"index.json", "clips.faiss"}
    told = CopyGuard(again)("a tune", audio_length_in_s=3, num_inference_steps=2, seed=0, mode="report")
    assert told.novelty[0]["nearest"][0]["recording"].endswith(".wav")


def test_generate_needs_no_index_option_then(trained, tmp_path, capsys):
    made = [
        "generate",
        "a tune",
        "--model",
        str(trained),
        "--seconds",
        "3",
        "--steps",
        "2",
        "--seed",
        "0",
        "--no-figure",
    ]
    assert main([*made, "--novelty", "report", "--out", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["nearest_training_clips"]["nearest"]


def test_a_pipeline_of_unknown_origin_says_so(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    card = (tmp_path / CARD).read_text(encoding="utf-8")
    assert "Nothing is recorded" in card
    assert f"{tiny_pipeline.sampling_rate} Hz" in card
    assert not (tmp_path / NOVELTY_INDEX).exists()


def test_push_to_hub_uploads_all_of_it(trained, hub):
    pipeline = MusicLDMPipeline.from_pretrained(trained)
    assert pipeline.push_to_hub("model", private=True, commit_message="first") == "address"
    assert hub.created == [("model", True)]
    (sent,) = hub.uploads
    assert (sent["repo_id"], sent["commit_message"], sent["card"]) == ("me/model", "first", pipeline.card)
    expected = {"model_index.json", CARD, "unet/config.json", "unet/diffusion_pytorch_model.safetensors"}
    assert expected | {f"{NOVELTY_INDEX}/index.json", "vocoder/model.safetensors"} <= sent["files"]
    assert not any(file.endswith((".bin", ".pt")) for file in sent["files"])


def test_a_card_on_the_hub_is_left_alone(trained, hub, tmp_path):
    hub.cards["me/model"] = "---\nlicense: cc0-1.0\n---\n# Mine\n"
    pipeline = MusicLDMPipeline.from_pretrained(trained)
    pipeline.save_pretrained(tmp_path, push_to_hub=True, repo_id="model")
    assert "# Mine" in hub.uploads[0]["card"]
    assert (tmp_path / CARD).read_text(encoding="utf-8") == pipeline.card


def test_adapters_are_not_trained_with_an_index(tiny_folder, data, tmp_path, capsys):
    run_it = ["train", "diffusion", f"data={data}", f"init={tiny_folder}", "lora.rank=2", "index=true"]
    assert main([*run_it, "--out", str(tmp_path / "run")]) == 2
    assert "novelty index" in capsys.readouterr().err
    assert np.array_equal(list(tmp_path.iterdir()), [])
