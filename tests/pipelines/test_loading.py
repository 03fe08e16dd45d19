"""Saving and loading: public classes only, one dtype, the right heads, and clear words for what is broken."""

import copy
import json
import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from musicldm.config import DiffusionConfig
from musicldm.models import loading
from musicldm.pipelines.text_to_music import MusicLDMPipeline
from musicldm.train.diffusion.stage import initial_unet
from tests.helpers.golden import golden, relative_error, tensors
from tests.helpers.tiny import EMBEDDING, make_unet
from vocoder import mel_config

FAST = {"num_inference_steps": 2, "audio_length_in_s": 0.16}
NETWORKS = ("vae", "text_encoder", "unet", "vocoder")


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model folder, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refuse_download(name: str):
    raise AssertionError(f"the hub was asked for {name}")


# ---- a folder


def test_saved_folder_names_public_classes_that_read_their_parts(tiny_folder):
    index = json.loads((tiny_folder / "model_index.json").read_text())
    assert index.pop("_class_name") == "MusicLDMPipeline"
    assert index.pop("_diffusers_version") == diffusers.__version__
    assert index == {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "ClapModel"],
        "tokenizer": ["transformers", "RobertaTokenizer"],
        "feature_extractor": ["transformers", "ClapFeatureExtractor"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "vocoder": ["transformers", "SpeechT5HifiGan"],
    }
    for name, (library, class_name) in index.items():
        cls = getattr({"diffusers": diffusers, "transformers": transformers}[library], class_name)
        assert type(cls.from_pretrained(tiny_folder / name)) is cls
    assert not list(tiny_folder.rglob("*.bin"))


def test_loaded_pipeline_makes_the_same_music(tiny_pipeline, tiny_folder):
    again = MusicLDMPipeline.from_pretrained(tiny_folder)
    arguments = {"num_waveforms_per_prompt": 2, "seed": 0} | FAST
    np.testing.assert_allclose(
        again("a waltz", **arguments).audios, tiny_pipeline("a waltz", **arguments).audios, atol=1e-6
    )
    assert again.name_or_path == str(tiny_folder)
    assert again.feature_extractor.to_dict() == tiny_pipeline.feature_extractor.to_dict()


def test_mel_parameters_travel_with_the_vocoder(tiny_folder, tiny_pipeline):
    stored = json.loads((tiny_folder / "vocoder" / "config.json").read_text())["mel"]
    assert (stored["sample_rate"], stored["n_mels"], stored["hop_length"]) == (8000, 16, 80)
    again = MusicLDMPipeline.from_pretrained(tiny_folder)
    assert mel_config(again.vocoder) == mel_config(tiny_pipeline.vocoder)


def test_diffusers_gives_its_own_class_of_the_same_name(tiny_folder):
    """Which class to call decides, not the folder: the README warns of this one."""
    assert type(diffusers.DiffusionPipeline.from_pretrained(tiny_folder)) is diffusers.MusicLDMPipeline


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("asked", [None, torch.float16, torch.bfloat16])
def test_all_parts_come_in_one_dtype(tiny_parts, tmp_path, stored, asked):
    MusicLDMPipeline(**copy.deepcopy(tiny_parts)).to(stored).save_pretrained(tmp_path)
    pipeline = MusicLDMPipeline.from_pretrained(tmp_path, torch_dtype=asked)
    dtypes = {p.dtype for name in NETWORKS for p in getattr(pipeline, name).parameters()}
    assert dtypes == {asked or torch.float32}
    assert not any(getattr(pipeline, name).training for name in NETWORKS)


def test_dtype_may_be_called_either_name_and_must_be_one(tiny_folder):
    assert MusicLDMPipeline.from_pretrained(tiny_folder, dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    for dtype in ("float16", torch.int8):
        with pytest.raises(ValueError, match=r"torch_dtype must be one floating point torch.dtype"):
            MusicLDMPipeline.from_pretrained(tiny_folder, torch_dtype=dtype)


def test_parts_handed_over_are_used_as_they_are(tiny_folder):
    scheduler = EulerDiscreteScheduler()
    unet = make_unet().to(torch.bfloat16)
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder, scheduler=scheduler, unet=unet, feature_extractor=None)
    assert pipeline.scheduler is scheduler
    assert pipeline.unet is unet
    assert unet.dtype == torch.bfloat16
    assert pipeline.feature_extractor is None


def test_optional_parts_may_be_missing(tiny_parts, tmp_path):
    without = {"tokenizer": None, "feature_extractor": None, "text_encoder": None}
    MusicLDMPipeline(**tiny_parts | without).save_pretrained(tmp_path)
    pipeline = MusicLDMPipeline.from_pretrained(tmp_path)
    assert pipeline.text_encoder is None
    audios = pipeline(prompt_embeds=torch.eye(EMBEDDING)[:1], guidance_scale=1, **FAST).audios
    assert audios.shape == (1, 1280)


def test_variant_is_read_where_there_is_one(folder):
    for name in ("unet", "vae"):
        (file,) = (folder / name).glob("*.safetensors")
        weights = {key: value + 1 for key, value in load_file(file).items()}
        save_file(weights, file.with_suffix(".other.safetensors"), {"format": "pt"})
    plain, other = (MusicLDMPipeline.from_pretrained(folder, variant=variant) for variant in (None, "other"))
    for name, change in (("unet", 1), ("vae", 1), ("vocoder", 0)):
        difference = next(getattr(other, name).parameters()) - next(getattr(plain, name).parameters())
        torch.testing.assert_close(difference, torch.full_like(difference, change))


def as_variant(folder, names, variant, keep=False):
    """Give the weights of parts ``names`` of a model folder names of ``variant``."""
    for name in names:
        (file,) = (folder / name).glob("*.safetensors")
        (shutil.copy if keep else shutil.move)(file, file.with_suffix(f".{variant}.safetensors"))


def test_a_folder_of_one_variant_says_which(folder):
    as_variant(folder, NETWORKS, "fp16")
    with pytest.raises(ValueError, match=r"has weights of variant='fp16' alone, not of variant=None"):
        MusicLDMPipeline.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"variant='bf16'; there are fp16"):
        MusicLDMPipeline.from_pretrained(folder, variant="bf16")
    assert MusicLDMPipeline.from_pretrained(folder, variant="fp16").unet is not None


def test_a_variant_that_is_not_there_is_an_error(tiny_folder, folder):
    with pytest.raises(ValueError, match=r"no part of .* variant='fp16'; its weights are of no variant"):
        MusicLDMPipeline.from_pretrained(tiny_folder, variant="fp16")
    for variant in ("", 16):
        with pytest.raises(ValueError, match="variant must be a name such as 'fp16'"):
            MusicLDMPipeline.from_pretrained(tiny_folder, variant=variant)
    as_variant(folder, ["unet"], "fp16", keep=True)
    as_variant(folder, ["vae"], "ema", keep=True)
    with pytest.raises(ValueError, match="there are ema, fp16, or leave variant out"):
        MusicLDMPipeline.from_pretrained(folder, variant="bf16")


def test_parts_of_several_variants(folder):
    as_variant(folder, ["unet"], "fp16")
    as_variant(folder, ["vae"], "ema")
    with pytest.raises(ValueError, match=r"vae has weights of variant='ema' alone, not of variant='fp16'"):
        MusicLDMPipeline.from_pretrained(folder, variant="fp16")
    with pytest.raises(ValueError, match=r"unet has weights of variant='fp16' alone"):
        loading.load_part(folder, "unet", diffusers.UNet2DConditionModel, torch.float32)
    assert loading.load_part(folder, "unet", diffusers.UNet2DConditionModel, torch.float32, "fp16") is not None


def test_dtypes_come_by_part(tiny_folder):
    kinds = {"unet": torch.float64, "vocoder": torch.bfloat16, "default": torch.float32}
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder, torch_dtype=kinds)
    dtypes = {name: next(getattr(pipeline, name).parameters()).dtype for name in NETWORKS}
    assert dtypes == dict.fromkeys(NETWORKS, torch.float32) | {"unet": torch.float64, "vocoder": torch.bfloat16}
    pipeline.set_progress_bar_config(disable=True)
    assert np.isfinite(pipeline("drums", seed=0, num_waveforms_per_prompt=2, **FAST).audios).all()
    half = MusicLDMPipeline.from_pretrained(tiny_folder, torch_dtype={"unet": torch.float64})
    assert (half.unet.dtype, half.vae.dtype) == (torch.float64, torch.float32)
    for wrong, message in (
        ({"unett": torch.float32}, r"torch_dtype names \['unett'\]; the parts are vae"),
        ({"unet": torch.int8}, "torch_dtype must be one floating point"),
    ):
        with pytest.raises(ValueError, match=message):
            MusicLDMPipeline.from_pretrained(tiny_folder, torch_dtype=wrong)


def test_unknown_argument_is_refused(tiny_folder):
    with pytest.raises(TypeError, match=r"no arguments \['legacy_head'\]"):
        MusicLDMPipeline.from_pretrained(tiny_folder, legacy_head=True)


def test_private_classes_are_not_saved(tiny_pipeline, tmp_path):
    class OwnScheduler(DDIMScheduler):
        pass

    tiny_pipeline.scheduler = OwnScheduler.from_config(tiny_pipeline.scheduler.config)
    with pytest.raises(ValueError, match=r"scheduler is a .*OwnScheduler .* must be a public"):
        tiny_pipeline.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ---- attention heads


@pytest.fixture
def converted(tiny_parts, tmp_path, monkeypatch):
    """A folder like the published conversion: the widths of the release (here tiny ones) and no head numbers."""
    monkeypatch.setattr(loading, "RELEASED_WIDTHS", [8, 16])
    monkeypatch.setattr(loading, "RELEASED_HEADS", [1, 2])
    MusicLDMPipeline(**tiny_parts | {"unet": make_unet(attention_head_dim=8)}).save_pretrained(tmp_path)
    edit(tmp_path / "unet" / "config.json", attention_head_dim=8)
    return tmp_path


def heads(unet) -> set[int]:
    return {module.heads for module in unet.modules() if type(module).__name__ == "Attention"}


def test_converted_folder_is_read_with_the_heads_of_training(converted, tmp_path, tiny_parts):
    with pytest.warns(UserWarning, match=r"says 8 attention heads .* using \[1, 2\] as in training"):
        repaired = MusicLDMPipeline.from_pretrained(converted)
    assert heads(repaired.unet) == {2}
    assert list(repaired.unet.config.attention_head_dim) == [1, 2]

    right = make_unet(attention_head_dim=[1, 2])
    right.load_state_dict(repaired.unet.state_dict())
    reference = MusicLDMPipeline(**tiny_parts | {"unet": right})
    np.testing.assert_allclose(repaired("a", seed=0, **FAST).audios, reference("a", seed=0, **FAST).audios, atol=1e-6)


def test_training_begins_with_the_heads_of_training(converted):
    with pytest.warns(UserWarning, match=r"says 8 attention heads .* using \[1, 2\] as in training"):
        unet = initial_unet(DiffusionConfig(init=str(converted)), 4, 8, EMBEDDING)
    assert heads(unet) == {2}
    assert list(unet.config.attention_head_dim) == [1, 2]


def test_repaired_heads_are_saved(converted, tmp_path, recwarn):
    with pytest.warns(UserWarning, match="attention heads"):
        MusicLDMPipeline.from_pretrained(converted).save_pretrained(tmp_path / "again")
    stored = json.loads((tmp_path / "again" / "unet" / "config.json").read_text())
    assert stored["attention_head_dim"] == [1, 2]
    recwarn.clear()
    assert heads(MusicLDMPipeline.from_pretrained(tmp_path / "again").unet) == {2}
    assert not [warning for warning in recwarn if "heads" in str(warning.message)]


def test_legacy_heads_keep_what_the_folder_says_for_good(converted, tmp_path, recwarn):
    legacy = MusicLDMPipeline.from_pretrained(converted, legacy_heads=True)
    assert legacy.unet.config.attention_head_dim == 8
    legacy.save_pretrained(tmp_path / "again")
    again = MusicLDMPipeline.from_pretrained(tmp_path / "again")
    assert heads(legacy.unet) == heads(again.unet) == {8}
    assert list(again.unet.config.attention_head_dim) == [8, 8]
    assert not [warning for warning in recwarn if "heads" in str(warning.message)]


def test_objects_keep_their_heads_and_saving_does_not_touch_them(converted, tmp_path, recwarn):
    unet = make_unet(attention_head_dim=8)
    config = dict(unet.config)  # saving adds the class's name and version to any configuration
    pipeline = MusicLDMPipeline.from_pretrained(converted, unet=unet)
    pipeline.save_pretrained(tmp_path / "again")
    assert {key: unet.config[key] for key in config} == config
    assert heads(unet) == heads(MusicLDMPipeline.from_pretrained(tmp_path / "again").unet) == {8}
    assert not [warning for warning in recwarn if "heads" in str(warning.message)]


@pytest.mark.parametrize(
    ("changes", "repaired"),
    [
        ({}, True),
        ({"attention_head_dim": None}, True),
        ({"attention_head_dim": [4, 8, 12, 20]}, False),
        ({"attention_head_dim": [8, 8, 8, 8]}, False),
        ({"attention_head_dim": 4}, False),
        ({"class_embeddings_concat": False}, False),
        ({"block_out_channels": [64, 128, 192]}, False),
    ],
)
def test_only_the_published_mistake_is_repaired(changes, repaired):
    config = {"block_out_channels": [128, 256, 384, 640], "class_embeddings_concat": True, "attention_head_dim": 8}
    assert loading.head_numbers(config | changes) == ([4, 8, 12, 20] if repaired else None)


def test_repaired_heads_are_32_wide_at_the_released_size():
    with torch.device("meta"):
        unet = make_unet(
            block_out_channels=[128, 256, 384, 640],
            cross_attention_dim=[128, 256, 384, 640],
            down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
            up_block_types=["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
            attention_head_dim=loading.RELEASED_HEADS,
            norm_num_groups=32,
        )
    attentions = [module for module in unet.modules() if type(module).__name__ == "Attention"]
    assert {module.heads for module in attentions} == {8, 12, 20}
    assert {module.inner_dim // module.heads for module in attentions} == {32}


# ---- names


def test_bundled_name_never_goes_to_the_hub(tiny_folder, monkeypatch):
    monkeypatch.setattr(loading, "bundled_models", lambda: {"mini": tiny_folder})
    monkeypatch.setattr(MusicLDMPipeline, "download", refuse_download)
    assert MusicLDMPipeline.from_pretrained("mini")("a", **FAST).audios.shape == (1, 1280)


def test_bundled_models_are_folders_of_the_package():
    for name, folder in loading.bundled_models().items():
        assert folder.parent.name == "pretrained"
        assert folder.parent.parent.name == "musicldm"
        assert loading.find_folder(name, refuse_download) == folder
        assert set(loading.read_index(folder)) == set(loading.PARTS)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("maxi", ValueError, r"'maxi' is no bundled model, no folder and no hub name .*bundled models: mini"),
        ("", ValueError, r"'' is no bundled model"),
        ("a/b/c", FileNotFoundError, r"no model folder 'a/b/c' .*bundled models: mini"),
        ("./maxi", FileNotFoundError, "no model folder './maxi'"),
        ("/nowhere/maxi", FileNotFoundError, "no model folder '/nowhere/maxi'"),
        (Path("maxi"), FileNotFoundError, "no model folder 'maxi'"),
        (Path(__file__), ValueError, "is a file, not a model folder .*from_original"),
    ],
)
def test_unknown_names_are_refused_without_the_hub(monkeypatch, name, error, message):
    monkeypatch.setattr(loading, "bundled_models", lambda: {"mini": Path("/package/mini")})
    monkeypatch.setattr(MusicLDMPipeline, "download", refuse_download)
    with pytest.raises(error, match=message):
        MusicLDMPipeline.from_pretrained(name)


def test_hub_name_is_read_from_the_hubs_cache(tiny_folder, tmp_path):
    repository = tmp_path / "models--someone--music"
    snapshot = repository / "snapshots" / ("0" * 40)
    shutil.copytree(tiny_folder, snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    pipeline = MusicLDMPipeline.from_pretrained("someone/music", cache_dir=tmp_path, local_files_only=True)
    assert pipeline("a", **FAST).audios.shape == (1, 1280)
    assert pipeline.name_or_path == "someone/music"


def test_hub_name_that_cannot_be_had_is_one_line(tmp_path):
    with pytest.raises(OSError, match="'someone/music' is no bundled model and no folder, and the hub gave") as caught:
        MusicLDMPipeline.from_pretrained("someone/music", cache_dir=tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.network
def test_published_model_is_found_on_the_hub(tmp_path):
    folder = loading.find_folder(
        "ucsd-reach/musicldm", lambda name: MusicLDMPipeline.download(name, cache_dir=tmp_path)
    )
    assert loading.read_index(folder)["unet"] == ("diffusers", "UNet2DConditionModel")


# ---- broken folders


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def drop_a_tensor(path: Path) -> None:
    weights = load_file(path)
    weights.pop(max(weights))
    save_file(weights, path, {"format": "pt"})


WEIGHTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "vocoder": "model.safetensors",
}


def is_clear(caught, *words) -> bool:
    """One line that names all ``words`` and what to do."""
    text = str(caught.value)
    return "\n" not in text and all(word in text for word in words) and ("save or download" in text or "give" in text)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (truncate, "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (Path.unlink, "cannot be read"),
        (drop_a_tensor, "no weights for 1 tensors"),
        (lambda path: truncate(path.with_name("config.json")), "not valid JSON"),
        (lambda path: path.with_name("config.json").write_text("[]"), "must hold an object"),
        (lambda path: shutil.rmtree(path.parent), "lacks its part"),
    ],
    ids=["truncated", "empty", "no weights", "a tensor missing", "config cut", "config no object", "no folder"],
)
def test_damaged_part_is_named(folder, name, damage, words):
    damage(folder / name / WEIGHTS[name])
    with pytest.raises((ValueError, OSError)) as caught:
        MusicLDMPipeline.from_pretrained(folder)
    assert is_clear(caught, str(folder), name, words)


@pytest.mark.parametrize("files", ["*", "tokenizer.json"])
def test_missing_vocabulary_is_named(folder, files):
    for file in (folder / "tokenizer").glob(files):
        file.unlink()
    with pytest.raises((ValueError, OSError)) as caught:
        MusicLDMPipeline.from_pretrained(folder)
    assert is_clear(caught, str(folder / "tokenizer"))


def test_weights_of_another_part_are_named(folder):
    shutil.rmtree(folder / "vocoder")
    shutil.copytree(folder / "text_encoder", folder / "vocoder")
    with pytest.raises((ValueError, OSError)) as caught:
        MusicLDMPipeline.from_pretrained(folder)
    assert is_clear(caught, str(folder / "vocoder"), "SpeechT5HifiGan")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": ["diffusers", "UNet2DModel"]}, "unet is a diffusers.UNet2DModel .* must be a public UNet2DCondition"),
        ({"vae": ["os", "system"]}, r"vae is a os.system .* must be a public AutoencoderKL"),
        ({"vae": ["diffusers", "NoSuch"]}, r"vae is a diffusers.NoSuch .* must be a public AutoencoderKL"),
        ({"scheduler": "DDIM"}, "must name library and class of 'scheduler', got 'DDIM'"),
        ({"vocoder": [None, None], "_class_name": "Other"}, "holds a Other without vocoder; give a MusicLDM folder"),
    ],
)
def test_index_of_something_else_is_refused(folder, changes, message):
    edit(folder / "model_index.json", **changes)
    with pytest.raises(ValueError, match=message):
        MusicLDMPipeline.from_pretrained(folder)


def test_folder_without_an_index_is_refused(folder, tmp_path):
    (folder / "model_index.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"is no model folder, it has no model_index.json"):
        MusicLDMPipeline.from_pretrained(folder)


def test_parts_that_do_not_fit_are_refused(tiny_parts):
    with pytest.raises(ValueError, match="UNet takes latents of 3 channels, the VAE gives 4"):
        MusicLDMPipeline(**tiny_parts | {"unet": make_unet(in_channels=3)})


# ---- the authors' checkpoint


@pytest.fixture(scope="module")
def original_state():
    """All parts as one checkpoint of the authors would hold them."""
    state = {}
    for name in ("unet/weights", "vae/weights", "vocoder/weights_plain"):
        state |= tensors(f"{name}.safetensors")
    state |= {f"cond_stage_model.model.{key}": value for key, value in tensors("clap/weights.safetensors").items()}
    return state | {"scale_factor": tensors("ddim/io.safetensors", "scale_factor")["scale_factor"]}


def configs() -> list[Path]:
    return [golden("musicldm_tiny.yaml"), golden("vocoder/config.json"), golden("clap/config.json")]


def test_original_checkpoint_gives_the_originals_waveform(original_state):
    """Ten guided DDIM steps and decoding; CLAP plays no part, the embeddings are given."""
    io = tensors("ddim/io.safetensors", "eta0.wav")
    pipeline = MusicLDMPipeline.from_original(original_state, *configs())
    output = pipeline(
        prompt_embeds=io["cond"][:, 0],
        negative_prompt_embeds=io["uncond"][:, 0],
        latents=io["x_T"],
        num_inference_steps=10,
        guidance_scale=io["guidance_scale"].item(),
        output_type="pt",
    )
    n_samples = 128 * 160  # the original keeps the vocoder's 32 surplus samples
    assert relative_error(output.audios, io["eta0.wav"][:, 0, :n_samples]) < 5e-5


def test_original_checkpoint_without_tokenizer_takes_embeddings(original_state, tmp_path):
    pipeline = MusicLDMPipeline.from_original(original_state, *configs())
    assert pipeline.tokenizer is None
    assert (pipeline.feature_extractor.frequency_min, pipeline.feature_extractor.sampling_rate) == (50, 48_000)
    with pytest.raises(ValueError, match="no tokenizer for"):
        pipeline("a waltz", audio_length_in_s=0.3, num_inference_steps=1)
    unconditional = pipeline.encode_prompt(prompt_embeds=torch.zeros(1, 512))[1]
    stored = tensors("clap/io.safetensors", "uncond_embed")["uncond_embed"][0]
    assert relative_error(unconditional, stored) < 1e-5  # the empty text needs no tokenizer
    pipeline.save_pretrained(tmp_path)
    assert MusicLDMPipeline.from_pretrained(tmp_path).tokenizer is None


def test_original_checkpoint_without_a_part_is_refused(original_state):
    state = {key: value for key, value in original_state.items() if "vocoder" not in key}
    with pytest.raises(ValueError, match=r"holds .*unet.*, but music also needs vocoder"):
        MusicLDMPipeline.from_original(state, *configs())


def test_tokenizer_comes_from_a_folder_or_an_object(tiny_folder, tiny_parts):
    found = loading.find_tokenizer(tiny_folder / "tokenizer", 300)
    assert found("a slow waltz")["input_ids"] == tiny_parts["tokenizer"]("a slow waltz")["input_ids"]
    assert loading.find_tokenizer(tiny_parts["tokenizer"], 300) is tiny_parts["tokenizer"]
    with pytest.raises(ValueError, match=r"tokenizer has \d+ pieces, CLAP's text tower knows 100"):
        loading.find_tokenizer(tiny_folder / "tokenizer", 100)


def test_tokenizer_that_cannot_be_had(tmp_path):
    assert loading.find_tokenizer(None, 300) is None  # no vocabulary of RoBERTa's size
    with pytest.raises(OSError, match="tokenizer someone/words is no folder, and the hub gave none"):
        loading.find_tokenizer("someone/words", 300)
    with pytest.raises(OSError, match="holds no tokenizer"):
        loading.find_tokenizer(tmp_path, 300)


def test_released_vocabulary_is_looked_for_and_its_lack_is_told(tmp_path, monkeypatch):
    def offline(name, **options):
        raise OSError("no network")

    monkeypatch.setattr(loading, "snapshot_download", offline)
    with pytest.warns(UserWarning, match=r"no prompts, only prompt_embeds: the tokenizer roberta-base .*no network"):
        assert loading.find_tokenizer(None, 50265) is None
