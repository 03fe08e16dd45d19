"""A concept learned from a few noises: its word comes near the music, other prompts stay, and prompts hold several."""

import copy
import json
import re
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from musicldm import MusicLDMPipeline
from musicldm.cli import main
from musicldm.config import ConceptConfig
from musicldm.data.clips import read_clip
from musicldm.data.collection import load_clips
from musicldm.models.adapters import EMBEDDING_FILE, WEIGHTS_FILE, add_word, load_concept
from musicldm.models.clap import embed_audio
from recipes.adapting.measure import CONCEPTS, UNRELATED

pytestmark = pytest.mark.slow

OVERRIDES = [
    *("device=cpu", "steps=40", "batch_size=4", "learning_rate=0.01", "trackers=[]", "validate_every=40"),
    "save_every=20",
    *("lora.rank=2", "word_rate=0.02", "word_steps=60"),
]


def learn(folder, data, name, out, *overrides) -> list[str]:
    return ["train", "concept", str(data), "--name", name, "--out", str(out), f"init={folder}", *OVERRIDES, *overrides]


def metrics(out, group):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["group"] == group]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two recordings of four clips each; one has a caption."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for i in range(2):
        soundfile.write(folder / f"{i}.wav", 0.1 * rng.standard_normal(4 * 2560), 8000)
    rows = [{"file_name": "0.wav", "text": "with strings"}, {"file_name": "1.wav"}]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def concepts(tiny_folder, data, tmp_path_factory):
    """Two run folders."""
    root = tmp_path_factory.mktemp("concepts")
    for name in ("mine", "yours"):
        seed = f"seed={len(name)}"
        assert main(learn(tiny_folder, data, f"<{name}>", root / name, seed)) == 0
    return [root / name for name in ("mine", "yours")]


@pytest.fixture
def pipeline(tiny_folder):
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_word_comes_near_the_music(concepts, data, pipeline):
    (word,) = metrics(concepts[0], "word")
    assert word["likeness"] > word["likeness_before"] + 0.2
    name = load_concept(pipeline, concepts[0] / "final")
    heard = [read_clip(clip, 8000, 2560) for clip in load_clips(data, 0.32)]
    audio = embed_audio(pipeline.text_encoder, pipeline.feature_extractor, torch.from_numpy(np.stack(heard)), 8000)
    saved = pipeline.embed_texts([name]) @ audio.T
    assert float(saved.detach().mean()) == pytest.approx(
        word["likeness"], abs=1e-4
    )  # the adapter's steps left it alone


@pytest.mark.slow
def test_the_adapter_learns_and_prior_preservation_keeps_other_captions(concepts, tiny_folder, data, tmp_path):
    assert main(learn(tiny_folder, data, "<mine>", tmp_path / "free", "prior_weight=0", "seed=4")) == 0
    before, free = metrics(tmp_path / "free", "validation")
    assert (before["step"], free["step"]) == (0, 40)
    assert before["prior"] < 1e-9  # an adapter begins as nothing
    assert free["diffusion"] < before["diffusion"]
    assert metrics(concepts[0], "validation")[-1]["prior"] < 0.7 * free["prior"]


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_concept(concepts, tiny_folder, data, tmp_path):
    shutil.copytree(concepts[0], tmp_path / "again", ignore=shutil.ignore_patterns("final", "checkpoint-40"))
    assert main([*learn(tiny_folder, data, "<mine>", tmp_path / "again", "seed=4"), "--resume"]) == 0
    for file in (EMBEDDING_FILE, "pytorch_lora_weights.safetensors"):
        once, again = (load_file(run / "final" / file) for run in (concepts[0], tmp_path / "again"))
        assert all(torch.equal(once[name], again[name]) for name in once)


def test_concepts_are_words_of_prompts(concepts, pipeline):
    texts = ["a slow waltz", "music, with strings"]
    before = pipeline.embed_texts(texts)
    assert [load_concept(pipeline, folder / "final") for folder in concepts] == ["<mine>", "<yours>"]
    torch.testing.assert_close(pipeline.embed_texts(texts), before)  # other prompts mean what they meant
    vectors = [next(iter(load_file(folder / "final" / EMBEDDING_FILE).values())) for folder in concepts]
    ids = pipeline.tokenizer("<mine>, with <yours> strings")["input_ids"]
    table = pipeline.text_encoder.text_model.embeddings.word_embeddings.weight
    for name, vector in zip(("<mine>", "<yours>"), vectors, strict=True):
        token = pipeline.tokenizer.convert_tokens_to_ids(name)
        assert ids.count(token) == 1
        assert torch.equal(table[token], vector)
    assert pipeline.get_active_adapters() == ["mine", "yours"]
    one, both = pipeline.embed_texts(["<mine>, with strings", "<mine> and <yours>, with strings"])
    assert float((one @ both).detach()) < 0.9999
    made = pipeline("<mine> and <yours>, with strings", num_inference_steps=2, seed=0)
    assert np.isfinite(made.audios).all()


def test_a_concept_more_leaves_the_weights_of_others(concepts, pipeline):
    load_concept(pipeline, concepts[0] / "final")
    pipeline.set_adapters(["mine"], [0.25])
    load_concept(pipeline, concepts[1] / "final")
    scales = [layer.scaling for layer in pipeline.unet.modules() if hasattr(layer, "scaling")]
    assert scales
    assert all((scale["mine"], scale["yours"]) == (0.25, 1.0) for scale in scales)


def test_a_concept_that_does_not_fit_leaves_no_word(concepts, pipeline, tmp_path):
    load_concept(pipeline, concepts[0] / "final")
    folder = shutil.copytree(concepts[1] / "final", tmp_path / "wider")
    layers = load_file(folder / "pytorch_lora_weights.safetensors")
    wider = {name: torch.cat([value, value], dim=int("lora_A" in name)) for name, value in layers.items()}
    save_file(wider, folder / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match="does not fit this UNet"):
        load_concept(pipeline, folder)
    assert "<yours>" not in pipeline.tokenizer.get_vocab()
    assert load_concept(pipeline, concepts[1] / "final") == "<yours>"
    assert pipeline.get_active_adapters() == ["mine", "yours"]


def test_a_concept_is_heard_and_keeps_its_cache_where_it_should(tiny_folder, data, tmp_path):
    """Of half of the recordings; killed before its first checkpoint, it writes no row twice."""
    out, cache = tmp_path / "run", tmp_path / "cache"
    short = [f"cache={cache}", "share=0.5", "steps=2", "warmup_steps=0", "validate_every=2", "word_steps=2"]
    command = learn(tiny_folder, data, "<mine>", out, *short)
    assert main(command) == 0
    assert (cache / "latents" / "moments.npy").is_file()
    assert not (out / "cache").exists()
    assert "4 clips of 1 recordings" in (out / "final" / "README.md").read_text()
    assert {path.name for path in (out / "examples" / "step-2").iterdir()} == {"mine.wav", "mine.png"}
    shutil.rmtree(out / "checkpoint-2")
    assert main([*command, "--resume"]) == 0
    assert [row["step"] for row in metrics(out, "validation")] == [0, 2]
    assert len(metrics(out, "word")) == 1


def test_a_concept_goes_with_the_models_own_clap(tiny_parts, tiny_folder, data, tmp_path, capsys):
    clap = copy.deepcopy(tiny_parts["text_encoder"])
    with torch.no_grad():
        clap.text_projection.linear1.weight.mul_(2)
    MusicLDMPipeline(**tiny_parts | {"text_encoder": clap}).save_pretrained(tmp_path / "other")
    assert main(learn(tiny_folder, data, "<mine>", tmp_path / "run", f"clap={tmp_path / 'other'}")) == 2
    assert "goes with its own CLAP" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_benchmarks_unrelated_prompts_are_not_what_concepts_are_held_to():
    """No word of theirs is in a caption of the prior, nor in one of the music that is learned."""
    captions = " ".join([*ConceptConfig().prior_captions, *(caption for _, caption in CONCEPTS.values())])
    known = set(re.findall(r"\w+", captions)) - {"a", "and"}
    assert not known & set(re.findall(r"\w+", " ".join(UNRELATED)))


def test_a_pipeline_with_a_word_more_is_saved_and_loaded(concepts, pipeline, tmp_path):
    load_concept(pipeline, concepts[0] / "final")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    pipeline.save_pretrained(tmp_path)
    again = MusicLDMPipeline.from_pretrained(tmp_path)
    assert torch.equal(again.embed_texts(["<mine>, slow"]), pipeline.embed_texts(["<mine>, slow"]))


def test_what_cannot_be_is_refused(concepts, tiny_folder, data, pipeline, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(learn(tiny_folder, data, "mine", out)) == 2
    assert "'mine'" in capsys.readouterr().err
    assert main(learn(tiny_folder, data, "<mine>", out, "drop_condition=0.1")) == 2
    assert "drop_condition=0.0" in capsys.readouterr().err
    assert main(["train", "concept", str(data), "--out", str(out)]) == 2
    assert "--name" in capsys.readouterr().err
    assert not out.exists()
    load_concept(pipeline, concepts[0] / "final")
    with pytest.raises(ValueError, match="<mine> already"):
        load_concept(pipeline, concepts[0] / "final")
    with pytest.raises(FileNotFoundError, match="no concept"):
        load_concept(pipeline, tmp_path)
    with pytest.raises(ValueError, match="words of size 3"):
        add_word(pipeline.text_encoder, pipeline.tokenizer, "<other>", torch.zeros(3))


def test_a_concept_is_loaded_whole_or_not_at_all(concepts, pipeline, tmp_path):
    folder = shutil.copytree(concepts[0] / "final", tmp_path / "concept")
    vector = load_file(folder / EMBEDDING_FILE)["<mine>"]
    for words, message in (
        ({"<mine>": vector, "<yours>": vector + 1}, "holds 2 words .* a concept is one"),
        ({"<mine>": vector * float("nan")}, "word vector of <mine> is not of finite numbers"),
        ({"<mine>": vector.long()}, "word vector of <mine> is not of finite numbers"),
        ({"<mine>": vector[:3]}, "words of size 3"),
        ({"<mine>": vector[None]}, "words of size"),
        ({"mine": vector}, "a concept is named like"),
        ({"<keys>": vector}, "adapter_name must be a word .* that torch's modules do not use, got 'keys'"),
    ):
        save_file(words, folder / EMBEDDING_FILE)
        with pytest.raises(ValueError, match=message):
            load_concept(pipeline, folder)
    (folder / EMBEDDING_FILE).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="cannot be read as a concept's word"):
        load_concept(pipeline, folder)
    save_file({"<mine>": vector}, folder / EMBEDDING_FILE)
    layers = load_file(folder / WEIGHTS_FILE)
    save_file({name: value for name, value in layers.items() if "lora_A" in name}, folder / WEIGHTS_FILE)
    with pytest.raises(ValueError, match="half of a pair"):
        load_concept(pipeline, folder)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="there is no adapter at"):
        load_concept(pipeline, folder)
    assert "<mine>" not in pipeline.tokenizer.get_vocab()
    assert pipeline.get_active_adapters() == []


def test_a_concept_that_is_loaded_as_an_adapter_says_so(concepts, pipeline):
    with pytest.warns(UserWarning, match="is a concept; its word is left out: load it by load_concept"):
        pipeline.load_lora_weights(concepts[0] / "final")
