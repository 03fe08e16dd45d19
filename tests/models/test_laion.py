"""LAION's own package and ours agree on embeddings. Its tokenizers and RoBERTa, which it would download, are stubs."""

import importlib.util

import numpy as np
import pytest
import torch
import transformers

from musicldm.models.clap import embed_audio
from musicldm.models.original import config_map, load_original, original_feature_extractor
from tests.helpers.golden import relative_error

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("laion_clap") is None,
    reason="laion_clap is not installed (pip install 'musicldm[laion]', then pip install --no-deps laion-clap)",
)


def make_module(*, fusion: bool):
    """A CLAP_Module with random weights and a small text tower."""
    text = transformers.RobertaConfig(
        vocab_size=60,
        hidden_size=768,  # LAION's projection is made for it
        num_hidden_layers=1,
        num_attention_heads=12,
        intermediate_size=32,
        max_position_embeddings=514,
        layer_norm_eps=1e-5,
        type_vocab_size=1,
    )
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("BertTokenizer", "RobertaTokenizer", "BartTokenizer"):
            patch.setattr(getattr(transformers, name), "from_pretrained", lambda *_, **__: None)
        patch.setattr(transformers.RobertaModel, "from_pretrained", lambda *_, **__: transformers.RobertaModel(text))
        import laion_clap

        module = laion_clap.CLAP_Module(enable_fusion=fusion, device="cpu", amodel="HTSAT-tiny")
    module.model.audio_branch.bn0.running_mean.normal_(-40, 5)
    module.model.audio_branch.bn0.running_var.uniform_(100, 400)
    return module.eval()


@pytest.fixture(scope="module")
def module():
    return make_module(fusion=False)


def noise(n_samples: int) -> torch.Tensor:
    """Two waveforms (2, n_samples)."""
    generator = torch.Generator().manual_seed(1)
    return 0.3 * torch.randn(2, n_samples, generator=generator).cumsum(1).sin()


@torch.no_grad()
def test_module_in_place_of_a_file(module):
    clap = load_original(module, None)["clap"]
    waveforms = noise(60_000)
    expected = module.get_audio_embedding_from_data(waveforms, use_tensor=True)
    actual = embed_audio(clap, original_feature_extractor(module.model_cfg), waveforms, 48_000)
    assert relative_error(actual, expected) < 1e-4

    ids = torch.tensor([[0, 7, 19, 44, 2], [0, 8, 2, 1, 1]])
    tokens = {"input_ids": ids, "attention_mask": ids.ne(1).long()}
    expected = module.get_text_embedding(None, tokenizer=lambda _: tokens, use_tensor=True)
    actual = clap.get_text_features(**tokens)
    actual = actual if isinstance(actual, torch.Tensor) else actual.pooler_output
    assert relative_error(actual, expected) < 1e-5


@torch.no_grad()
def test_file_that_the_package_writes(module, tmp_path):
    """A checkpoint as LAION's training saves it, data-parallel prefix included."""
    path = tmp_path / "clap.pt"
    torch.save({"epoch": 1, "state_dict": {f"module.{k}": v for k, v in module.model.state_dict().items()}}, path)
    from_file = load_original(path, None, clap_config=config_map.of_clap_module(module))["clap"]
    from_module = load_original(module, None)["clap"].state_dict()
    for name, value in from_file.state_dict().items():
        assert torch.equal(value, from_module[name]), name


@pytest.mark.slow
@torch.no_grad()
def test_module_with_feature_fusion(tmp_path, monkeypatch):
    """Long and short audio; the file that it writes says by its names alone that there is fusion."""
    module = make_module(fusion=True)
    for name, buffer in module.model.audio_branch.patch_embed.fusion_model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    config = config_map.of_clap_module(module)
    unsaid = {key: value for key, value in config.items() if key not in ("enable_fusion", "fusion_type")}
    torch.save(
        {"epoch": 1, "state_dict": {f"module.{k}": v for k, v in module.model.state_dict().items()}}, tmp_path / "f"
    )
    clap = load_original(tmp_path / "f", None, clap_config=unsaid)["clap"]
    assert clap.config.audio_config.enable_fusion
    for name, value in load_original(module, None)["clap"].state_dict().items():
        assert torch.equal(value, clap.state_dict()[name]), name
    extractor = original_feature_extractor(module.model_cfg)
    assert extractor.truncation == "fusion"

    # Of each third LAION takes a random clip, we the first, middle and last one possible. Its training shrank the
    # spectrogram without the low-pass that later versions of torchvision apply by default.
    import torchvision

    places = iter([])
    monkeypatch.setattr(np.random, "choice", lambda third: next(place for place in places if place in third))
    resize = torchvision.transforms.Resize
    monkeypatch.setattr(torchvision.transforms, "Resize", lambda size: resize(size, antialias=False))
    embeddings = []
    for n_samples in (60_000, 480_100, 700_000):  # repeated; as long as a clip; 457 frames longer
        waveforms = noise(n_samples)
        n_starts = n_samples // 480 - 1000 + 1
        places = iter(2 * [0, n_starts // 2, n_starts - 1])
        expected = module.get_audio_embedding_from_data(waveforms, use_tensor=True)
        embeddings.append(embed_audio(clap, extractor, waveforms, 48_000))
        assert relative_error(embeddings[-1], expected) < 1e-4
    for name, parameter in clap.named_parameters():  # and the clips do count
        if "mel_conv2d" in name:
            parameter.add_(0.1)
    assert relative_error(embed_audio(clap, extractor, noise(700_000), 48_000), embeddings[-1]) > 1e-4
    assert torch.equal(embed_audio(clap, extractor, noise(60_000), 48_000), embeddings[0])
