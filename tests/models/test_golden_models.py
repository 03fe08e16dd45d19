"""The loaded parts compute what the original computes, to the tolerances of the reference data."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from musicldm.audio.resampling import resample
from musicldm.models.clap import clap_log_mel, embed_audio, embed_log_mel, embed_text
from musicldm.models.original import load_original, original_feature_extractor
from musicldm.train.vae import kl_divergence
from tests.helpers.golden import COPIES, golden, relative_error, shared_golden, tensors
from vocoder import MelConfig, log_mel_spectrogram
from vocoder.mel import magnitude, mel_filters


@pytest.fixture(scope="module")
def unet():
    return load_original(golden("unet/weights.safetensors"), golden("unet/config.yaml"))["unet"]


@pytest.fixture(scope="module")
def unet_io():
    return tensors("unet/io.safetensors")


@pytest.fixture(scope="module")
def vae():
    return load_original(golden("vae/weights.safetensors"), golden("vae/config.yaml"))["vae"]


@pytest.fixture(scope="module")
def vae_io():
    return tensors("vae/io.safetensors")


@pytest.fixture(scope="module")
def clap():
    return load_original(golden("clap/weights.safetensors"), None, clap_config=golden("clap/config.json"))["clap"]


@pytest.fixture(scope="module")
def clap_io():
    return tensors("clap/io.safetensors")


@pytest.fixture(scope="module")
def extractor():
    return original_feature_extractor(golden("clap/config.json"))


def recorded(module, names):
    """Outputs of submodules during the next call, by name; tuples give their first item."""
    outputs = {}

    def keep(name):
        def hook(_, __, output):
            outputs[name] = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)

        return hook

    for name in names:
        module.get_submodule(name).register_forward_hook(keep(name))
    return outputs


@torch.no_grad()
def test_unet(unet, unet_io):
    paths = {
        "h.input_blocks.0": "conv_in",
        "h.input_blocks.1": "down_blocks.0.resnets.0",
        "h.input_blocks.6": "down_blocks.1.downsamplers.0",
        "h.middle_block": "mid_block",
        "h.output_blocks.0": "up_blocks.0.attentions.0",
        "t_emb": "time_proj",
        "time": "time_embedding",
        "film": "class_embedding",
    }
    outputs = recorded(unet, paths.values())
    eps = unet(unet_io["x"], unet_io["timesteps"], encoder_hidden_states=None, class_labels=unet_io["y"]).sample
    assert relative_error(eps, unet_io["eps"]) < 1e-5
    for name, path in paths.items():
        if name.startswith("h."):
            assert relative_error(outputs[path][: len(unet_io[name])], unet_io[name]) < 1e-5, name
    assert relative_error(outputs["time_proj"], unet_io["t_emb"]) < 5e-5
    embedding = torch.cat([outputs["time_embedding"], outputs["class_embedding"]], dim=1)
    assert relative_error(embedding, unet_io["emb"]) < 5e-5


@torch.no_grad()
def test_unet_epsilons(unet, unet_io):
    """In float64, since norms of small inputs make much of rounding: what is left is the reference's own."""
    exact, x, condition = copy.deepcopy(unet).double(), unet_io["small.x"].double(), unet_io["y"][:1].double()
    eps = exact(x, unet_io["timesteps"][:1], encoder_hidden_states=None, class_labels=condition).sample
    assert relative_error(eps, unet_io["small.eps"]) < 5e-5
    # too small a difference to show in numbers: compared by reading
    assert {module.norm.eps for name, module in unet.named_modules() if name[:-1].endswith("attentions.")} == {1e-6}


@torch.no_grad()
@pytest.mark.parametrize("name", ["square", "long"])
def test_vae(vae, vae_io, name):
    posterior = vae.encode(vae_io[f"{name}.mel"]).latent_dist
    assert relative_error(posterior.parameters, vae_io[f"{name}.moments"]) < 1e-5
    assert relative_error(posterior.mean, vae_io[f"{name}.mean"]) < 1e-5
    assert relative_error(posterior.logvar, vae_io[f"{name}.logvar"]) < 1e-5
    sample = posterior.mean + posterior.std * vae_io[f"{name}.noise"]
    assert relative_error(sample, vae_io[f"{name}.sample"]) < 1e-5
    assert relative_error(kl_divergence(posterior), vae_io[f"{name}.kl"].mean()) < 1e-5
    assert relative_error(vae.decode(vae_io[f"{name}.mean"]).sample, vae_io[f"{name}.decoded_mode"]) < 3e-5


@torch.no_grad()
def test_vae_epsilons(vae, vae_io):
    """In float64, as above."""
    exact = copy.deepcopy(vae).double()
    assert relative_error(exact.encode(vae_io["small.mel"].double()).latent_dist.mean, vae_io["small.mean"]) < 1e-5
    assert relative_error(exact.decode(vae_io["small.z"].double()).sample, vae_io["small.decoded"]) < 3e-5


@torch.no_grad()
@pytest.mark.parametrize(("form", "key"), [("plain", "wav"), ("weight_norm", "wav_weight_norm")])
def test_vocoder(form, key):
    path, config = golden(f"vocoder/weights_{form}.safetensors"), golden("vocoder/config.json")
    generator = load_original(path, None, vocoder_config=config)["vocoder"]
    io = tensors("vocoder/io.safetensors")
    waveform = generator(io["mel"].transpose(1, 2))  # (B, L)
    assert relative_error(waveform[:, None], io[key]) < 1e-5


def test_mel_filters():
    expected = tensors("mel/io.safetensors")["mel_basis"]
    assert (mel_filters(MelConfig()) - expected).abs().max() / expected.max() < 1e-6


@pytest.mark.parametrize("name", ["tonal", "silent", "loud"])
def test_log_mel(name):
    io = tensors("mel/io.safetensors")
    waveform = io[f"{name}.wav"][None]
    assert (log_mel_spectrogram(waveform, MelConfig())[0].T - io[f"{name}.mel"]).abs().max() < 1e-4
    energy = torch.linalg.vector_norm(magnitude(waveform, MelConfig())[0], dim=1)
    assert relative_error(energy, io[f"{name}.energy"]) < 1e-5


def test_clap_resampling(clap_io):
    assert relative_error(resample(clap_io["wav_16k"][:1], 16_000, 48_000), clap_io["wav_48k"]) < 1e-6


def test_clap_log_mel(clap_io, extractor):
    direct = clap_log_mel(clap_io["direct48.wav"], extractor)
    assert (direct - clap_io["direct48.logmel"]).abs().max() < 1e-2  # dB


def test_clap_log_mel_after_resampling(extractor):
    clap_io = tensors("clap/io.safetensors", "logmel")
    resampled = clap_log_mel(resample(clap_io["wav_16k"][:1], 16_000, 48_000), extractor)
    assert (resampled - clap_io["logmel"]).abs().max() < 5e-2  # dB


@torch.no_grad()
def test_clap_audio(clap, clap_io, extractor):
    paths = ["patch_embed", "layers.0", "layers.1"]
    encoder = clap.audio_model.audio_encoder
    outputs = recorded(encoder, paths)
    images = []
    encoder.patch_embed.register_forward_pre_hook(lambda _, args: images.append(args[0]))
    embedding = embed_audio(clap, extractor, clap_io["wav_16k"], 16_000)
    assert relative_error(embedding[:, None], clap_io["audio_embed"]) < 5e-4
    assert relative_error(images[0][:1], clap_io["swin_input"]) < 5e-4
    for path, key, step in zip(paths, ["patch_embed", "layer0", "layer1"], [16, 8, 1], strict=True):
        assert relative_error(outputs[path][:1, ::step], clap_io[key]) < 5e-4, key
    log_mel = clap_log_mel(resample(clap_io["wav_16k"], 16_000, 48_000), extractor)
    pooled = clap.audio_model(input_features=log_mel).pooler_output
    assert relative_error(pooled, clap_io["audio_branch_embedding"]) < 5e-4


@torch.no_grad()
def test_clap_audio_at_its_own_rate(clap, clap_io, extractor):
    embedding = embed_audio(clap, extractor, clap_io["direct48.wav"], 48_000)
    assert relative_error(embedding, clap_io["direct48.audio_embed"]) < 1e-4


@torch.no_grad()
def test_clap_fed_with_the_stored_log_mel(clap, clap_io):
    assert relative_error(embed_log_mel(clap, clap_io["logmel"]), clap_io["audio_embed"][:1, 0]) < 1e-5
    direct = clap_io["direct48.logmel"]
    assert relative_error(embed_log_mel(clap, direct), clap_io["direct48.audio_embed"]) < 1e-5
    pooled = clap.audio_model(input_features=direct).pooler_output
    assert relative_error(pooled, clap_io["direct48.audio_branch_embedding"]) < 1e-5


@torch.no_grad()
def test_clap_text(clap, clap_io):
    ids, mask = clap_io["input_ids"], clap_io["attention_mask"]
    outputs = clap.text_model(input_ids=ids, attention_mask=mask)
    heard = mask.bool()
    assert relative_error(outputs.last_hidden_state[heard], clap_io["text_last_hidden"][heard]) < 1e-5
    assert relative_error(outputs.pooler_output, clap_io["text_pooler"]) < 1e-5


@torch.no_grad()
def test_clap_text_embeddings(clap, clap_io):
    """Through the package's function, with a tokenizer that gives the stored rows."""
    rows = [
        ids[mask.bool()].tolist() for ids, mask in zip(clap_io["input_ids"], clap_io["attention_mask"], strict=True)
    ]
    texts = [" ".join(f"<{i}>" for i in row) for row in rows]
    embedding = embed_text(clap, numbers_tokenizer(clap.config.text_config.vocab_size), texts)
    assert relative_error(embedding[:, None], clap_io["text_embed"]) < 1e-5
    assert relative_error(embedding[-1:, None], clap_io["uncond_embed"]) < 1e-5


def numbers_tokenizer(size):
    """A real tokenizer whose pieces are written numbers: "<17> <4>" is [17, 4]."""
    tokenizer = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(size)}, unk_token="<3>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<1>")


def copies():
    """Copies of reference data; what earlier versions of the package made lies in folders ``*_before``."""
    files = (path.relative_to(COPIES) for path in COPIES.rglob("*") if path.is_file())
    return sorted(path for path in files if not path.parts[0].endswith("_before"))


def test_copies_are_there():
    assert len(copies()) >= 6
    assert sum((COPIES / path).stat().st_size for path in copies()) < 3_000_000


@pytest.mark.parametrize("name", copies(), ids=str)
def test_copies_equal_the_reference(name):
    folder = shared_golden()
    if folder is None:
        pytest.skip("needs the reference data: set MUSICLDM_SHARED")
    if name.suffix != ".safetensors":
        assert (COPIES / name).read_bytes() == (folder / name).read_bytes()
        return
    copy, reference = load_file(COPIES / name), load_file(folder / name)
    assert copy
    for key, value in copy.items():
        assert torch.equal(value, reference[key]), key


def test_reference_configs_are_read(extractor):
    audio = json.loads(golden("clap/config.json").read_text())["audio_cfg"]
    assert extractor.sampling_rate == audio["sample_rate"]
    assert extractor.nb_max_samples == audio["clip_samples"]
    assert extractor.frequency_min == audio["fmin"]
