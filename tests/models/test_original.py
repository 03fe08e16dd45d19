"""Original checkpoints of any size become modules with the right weights in the right places."""

import math

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from transformers import ClapConfig, ClapModel

from musicldm.models.original import config_map, load_original, original_feature_extractor
from musicldm.models.original.key_map import averaged_name, clap_names
from tests.helpers.golden import golden
from tests.helpers.originals import (
    CLAP,
    CLAP_CONFIG,
    SIZES,
    UNET,
    VAE,
    VOCODER,
    VOCODER_CONFIG,
    assert_equal_weights,
    config_of,
    fresh,
    full_checkpoint,
    to_original,
)


@pytest.fixture(scope="module")
def small():
    return fresh(SIZES["two levels"])


@pytest.fixture(scope="module")
def state(small):
    return full_checkpoint(small)


def zeros(shape):
    return torch.zeros([] if shape == "scalar" else [int(n) for n in shape.split("x")])


@pytest.fixture(scope="module")
def released():
    """Every tensor of the released checkpoints, without memory: file -> name -> tensor on the meta device."""
    layouts = {}
    for name in ("musicldm_ckpt_state_dict", "hifigan_generator_weight_norm", "clap_htsat_base_roberta"):
        lines = golden(f"layout/{name}.tsv").read_text().splitlines()[1:]
        rows = [line.split("\t") for line in lines]
        layouts[name] = {
            key: torch.empty_like(zeros(shape), dtype=getattr(torch, dtype), device="meta")
            for key, shape, dtype in rows
        }
    layouts["musicldm_ckpt_state_dict"]["scale_factor"] = torch.tensor(0.5)
    return layouts


def shapes(module):
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def n_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("use_ema", [True, False])
def test_every_tensor_of_the_released_checkpoint_has_its_place(released, use_ema):
    parts = load_original(released["musicldm_ckpt_state_dict"], None, use_ema=use_ema)
    assert list(parts) == ["unet", "scheduler", "vae", "vocoder", "clap"]
    assert round(n_parameters(parts["unet"]) / 1e6, 2) == 185.04
    assert parts["unet"].config.attention_head_dim == [4, 8, 12, 20]
    assert parts["unet"].config.sample_size == 256
    assert parts["vae"].config.scaling_factor == 0.5
    assert parts["vocoder"].config.mel["clip_s"] == 10.24
    assert math.prod(parts["vocoder"].config.upsample_rates) == parts["vocoder"].config.mel["hop_length"]
    assert n_parameters(parts["clap"]) > 190e6


def test_released_separate_files(released):
    full = released["musicldm_ckpt_state_dict"]
    vocoder = load_original({"generator": released["hifigan_generator_weight_norm"]}, None)
    assert list(vocoder) == ["vocoder"]
    clap_file = {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in released["clap_htsat_base_roberta"].items()}}
    assert list(load_original(clap_file, None)) == ["clap"]
    vae_file = {key.removeprefix(VAE): value for key, value in full.items() if key.startswith(VAE)}
    assert list(load_original({"state_dict": vae_file}, None)) == ["vae", "vocoder"]


def test_any_missing_name_of_the_released_checkpoint_is_noticed(released):
    state = dict(released["musicldm_ckpt_state_dict"])
    for prefix in (UNET, VAE + "decoder.", VOCODER, CLAP + "text_branch.encoder", CLAP + "audio_branch.layers"):
        lost = next(key for key in reversed(state) if key.startswith(prefix) and not key.endswith("attn_mask"))
        rest = {key: value for key, value in state.items() if key != lost}
        with pytest.raises(ValueError, match="lacks 1 tensor") as error:
            load_original(rest, None, use_ema=False)
        assert lost in str(error.value)


@pytest.mark.parametrize("size", SIZES)
def test_round_trip_at_other_sizes(size):
    config, parts = SIZES[size], fresh(SIZES[size])
    state = full_checkpoint(parts)
    before = {key: value.clone() for key, value in state.items()}
    averaged = load_original(state, config, VOCODER_CONFIG, CLAP_CONFIG)
    raw = load_original(state, config, VOCODER_CONFIG, CLAP_CONFIG, use_ema=False)
    assert_equal_weights(averaged["unet"], parts["unet"], factor=2.0)
    assert_equal_weights(raw["unet"], parts["unet"])
    for name in ("vae", "vocoder", "clap"):
        assert_equal_weights(raw[name], parts[name])
        assert not raw[name].training
    assert raw["vae"].config.scaling_factor == 0.75
    assert raw["scheduler"].config.num_train_timesteps == 500
    assert raw["vocoder"].config.mel == {
        "sample_rate": 8000,
        "n_fft": 64,
        "hop_length": 20,
        "n_mels": 10,
        "f_min": 30.0,
        "f_max": 3500.0,
        "floor": 1e-5,
        "clip_s": 0.5,
    }
    for part in raw.values():  # the modules own their memory: nobody else's tensors are touched by training them
        for parameter in part.parameters() if isinstance(part, nn.Module) else ():
            parameter.data.zero_()
    assert all(torch.equal(state[key], value) for key, value in before.items())


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_loaded_parts_run(size):
    """No parameter is left without memory, and the shapes fit each other."""
    parts = load_original(full_checkpoint(fresh(SIZES[size])), SIZES[size], VOCODER_CONFIG, CLAP_CONFIG)
    noise = torch.randn(1, 4, 16, 8)
    eps = parts["unet"](noise, 3, encoder_hidden_states=None, class_labels=torch.randn(1, 24)).sample
    assert eps.shape == noise.shape
    factor = 2 ** (len(parts["vae"].config.block_out_channels) - 1)
    assert parts["vae"].decode(noise).sample.shape == (1, 1, 16 * factor, 8 * factor)
    assert parts["vocoder"](torch.randn(1, 7, 10)).shape == (1, 7 * 20)
    assert parts["clap"].get_text_features(torch.tensor([[0, 5, 2]])).pooler_output.shape == (1, 24)
    log_mel = torch.randn(1, 1, 201, 16)
    assert parts["clap"].get_audio_features(log_mel).pooler_output.shape == (1, 24)


def test_heads_have_one_width(small):
    assert small["unet"].config.attention_head_dim == [2, 4]
    config = config_of(head_width=-1)
    config["model"]["params"]["unet_config"]["params"]["num_heads"] = 4
    assert fresh(config)["unet"].config.attention_head_dim == [4, 4]
    with pytest.raises(ValueError, match=r"64 channels do not divide .* 24"):
        fresh(config_of(head_width=24))


def test_separate_files(state, small):
    config = SIZES["two levels"]
    vae = {key.removeprefix(VAE): value for key, value in state.items() if key.startswith(VAE) and VOCODER not in key}
    parts = load_original({"state_dict": vae}, config)
    assert list(parts) == ["vae"]
    assert parts["vae"].config.scaling_factor == 1.0
    assert_equal_weights(parts["vae"], small["vae"])
    clap = {"module." + key.removeprefix(CLAP): value for key, value in state.items() if key.startswith(CLAP)}
    parts = load_original({"epoch": 1, "state_dict": clap}, None, clap_config=CLAP_CONFIG)
    assert list(parts) == ["clap"]
    assert_equal_weights(parts["clap"], small["clap"])


def test_separate_vocoder_with_weight_norm(state, small):
    """g v / |v| over all axes but the first, which of a transposed convolution is the input's."""
    generator = {}
    for key, value in state.items():
        if key.startswith(VOCODER) and key.endswith("weight"):
            name = key.removeprefix(VOCODER)
            norm = value.flatten(1).norm(dim=1).view(-1, 1, 1)
            generator |= {name + "_g": norm, name + "_v": 3 * value}
        elif key.startswith(VOCODER):
            generator[key.removeprefix(VOCODER)] = value
    parts = load_original({"generator": generator}, None, VOCODER_CONFIG)
    assert list(parts) == ["vocoder"]
    for name, value in small["vocoder"].state_dict().items():
        assert torch.allclose(parts["vocoder"].state_dict()[name], value, atol=1e-6), name


def test_module_handed_over_in_place_of_a_file(state, small):
    """As laion_clap's CLAP_Module: the network is ``.model``, its configuration ``.model_cfg``."""

    def grow(root, name, value):
        *path, last = name.split(".")
        for step in path:
            if not hasattr(root, step):
                root.add_module(step, nn.Module())
            root = getattr(root, step)
        root.register_buffer(last, value)

    module = nn.Module()
    for key, value in state.items():
        if key.startswith(CLAP):
            grow(module, "model." + key.removeprefix(CLAP), value)
    module.model_cfg = CLAP_CONFIG
    parts = load_original(module, None)
    assert list(parts) == ["clap"]
    assert_equal_weights(parts["clap"], small["clap"])


def test_reduced_precision_becomes_float32(state, small):
    stored = {key: value.to(torch.float8_e4m3fn) if value.ndim > 1 else value.half() for key, value in state.items()}
    stored["model_ema.num_updates"] = torch.tensor(7)
    unet = load_original(stored, SIZES["two levels"], VOCODER_CONFIG, CLAP_CONFIG, use_ema=False)["unet"]
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.float32}
    expected = small["unet"].conv_in.weight.to(torch.float8_e4m3fn).float()
    assert torch.equal(unet.conv_in.weight, expected)


def test_feature_extractor_of_the_configuration():
    extractor = original_feature_extractor(CLAP_CONFIG)
    assert (extractor.sampling_rate, extractor.nb_max_samples, extractor.hop_length) == (8000, 16_000, 80)
    assert (extractor.frequency_min, extractor.frequency_max, extractor.feature_size) == (50, 4000, 16)
    assert original_feature_extractor().sampling_rate == 48_000


@pytest.fixture(scope="module")
def fused():
    """A CLAP with feature fusion, and its file."""
    clap = ClapModel(ClapConfig(**config_map.clap_config(CLAP_CONFIG | {"enable_fusion": True})))
    for parameter in clap.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
    return clap, to_original(clap, clap_names(clap.config.audio_config.depths), "module.")


def test_feature_fusion_is_known_by_the_weights(fused):
    """LAION's model JSON does not tell; where a configuration does, the weights must agree."""
    clap, state = fused
    unsaid = {key: value for key, value in CLAP_CONFIG.items() if key != "enable_fusion"}
    for config in (unsaid, unsaid | {"enable_fusion": True, "fusion_type": "aff_2d"}):
        (found,) = load_original(state, None, clap_config=config).values()
        assert found.config.audio_config.enable_fusion
        assert_equal_weights(found, clap)
    assert original_feature_extractor(unsaid, fused=True).truncation == "fusion"
    assert original_feature_extractor(unsaid).truncation == "rand_trunc"
    with pytest.raises(ValueError, match=r"fusion_model.local_att.0.weight, .* that the config has no place for"):
        load_original(state, None, clap_config=CLAP_CONFIG)
    plain = {key: value for key, value in state.items() if "mel_conv2d" not in key and "fusion_model" not in key}
    with pytest.raises(ValueError, match=r"lacks .*patch_embed.fusion_model.local_att.0.weight"):
        load_original(plain, None, clap_config=unsaid | {"enable_fusion": True})
    with pytest.raises(ValueError, match=r"clap.fusion_type = 'iaff_2d' is not supported, only 'aff_2d'"):
        load_original(state, None, clap_config=unsaid | {"fusion_type": "iaff_2d"})


def test_weights_of_something_else():
    with pytest.raises(ValueError, match=r"2 tensors \(fc.weight, fc.bias\)"):
        load_original({"fc.weight": torch.zeros(2, 2), "fc.bias": torch.zeros(2)}, None)


def test_missing_unexpected_and_misshaped_names(state):
    config = SIZES["two levels"]

    def load(changes, lost=()):
        changed = {key: value for key, value in (state | changes).items() if key not in lost}
        return load_original(changed, config, VOCODER_CONFIG, CLAP_CONFIG, use_ema=False)

    unet_keys = [key for key in state if key.startswith(UNET)]
    with pytest.raises(ValueError, match=r"UNet2DConditionModel lacks 6 tensors \(") as error:
        load({}, unet_keys[:6])
    assert sum(key in str(error.value) for key in unet_keys[:6]) == 4
    with pytest.raises(
        ValueError, match=r"1 tensor \(model.diffusion_model.extra.weight\) that the config has no place"
    ):
        load({UNET + "extra.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"encoder.conv_in.weight \(1, 2\) instead of \(32, 1, 3, 3\)"):
        load({VAE + "encoder.conv_in.weight": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match=r"conv_pre.weight_g.*no place"):
        load({VOCODER + "conv_pre.weight_g": torch.zeros(12, 1, 1)})
    ema = averaged_name(unet_keys[0].removeprefix(UNET))
    without_one = {key: value for key, value in state.items() if key != ema}
    with pytest.raises(ValueError, match=r"lacks 1 tensor \(model_ema"):
        load_original(without_one, config, VOCODER_CONFIG, CLAP_CONFIG)


def test_average_alone(state, small):
    """A file may hold the averaged weights only; without leave to use them there is no UNet."""
    only = {key: value for key, value in state.items() if key.startswith("model_ema.")}
    assert_equal_weights(load_original(only, SIZES["two levels"])["unet"], small["unet"], factor=2.0)
    with pytest.raises(ValueError, match="no part"):
        load_original(only, SIZES["two levels"], use_ema=False)


def changed(path, value):
    config = OmegaConf.create(SIZES["two levels"])
    OmegaConf.update(config, path, value)
    return config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("model.params.unet_config.params.use_spatial_transformer", False, "use_spatial_transformer = False"),
        ("model.params.unet_config.params.use_scale_shift_norm", True, "use_scale_shift_norm"),
        ("model.params.unet_config.params.channel_mult", [2, 4], "begin with 1"),
        ("model.params.first_stage_config.params.embed_dim", 3, "embed_dim"),
        ("model.params.first_stage_config.params.ddconfig.double_z", False, "double_z"),
        ("model.params.parameterization", "score", "parameterization"),
        ("model.params.beta_schedule", "cosine", "beta_schedule"),
    ],
)
def test_options_of_other_networks_are_refused(state, path, value, message):
    with pytest.raises(ValueError, match=message):
        load_original(state, changed(path, value), VOCODER_CONFIG, CLAP_CONFIG)


@pytest.mark.parametrize("config", [{"model": {"params": {}}}, {"a": 1}])
def test_config_of_something_else(state, config):
    with pytest.raises(ValueError, match=r"config lacks model\.params"):
        load_original(state, config)


@pytest.mark.parametrize("text", ["", "just words", "a: [1", "a: ${b}", "[1, 2]"])
def test_unreadable_config(state, tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="config"):
        load_original(state, path)


def test_config_of_another_size_names_the_way_out(state):
    with pytest.raises(ValueError, match="is this the config that belongs to the checkpoint") as error:
        load_original(state, None)
    assert len(str(error.value)) < 1000


def test_v_prediction_and_other_parameterizations(state):
    parts = load_original(state, changed("model.params.parameterization", "v"), VOCODER_CONFIG, CLAP_CONFIG)
    assert parts["scheduler"].config.prediction_type == "v_prediction"


@pytest.mark.parametrize(("option", "value"), [("resblock", "2"), ("win_size", 32)])
def test_vocoders_of_other_kinds_are_refused(state, option, value):
    vocoder = {key: value for key, value in state.items() if key.startswith(VOCODER)}
    with pytest.raises(ValueError, match=f"vocoder.{option} = {value!r} is not supported"):
        load_original(vocoder, None, VOCODER_CONFIG | {option: value})


def test_vocoder_that_does_not_fill_its_hop_is_told(state):
    vocoder = {key: value for key, value in state.items() if key.startswith(VOCODER)}
    with pytest.warns(UserWarning, match="20 samples .* hop_size 25"):
        load_original(vocoder, None, VOCODER_CONFIG | {"hop_size": 25})
