"""Configurations: files only override, and mistakes are errors that name the key."""

import re
from pathlib import Path

import pytest

from musicldm.config import STAGES, VAEConfig, differences, find_config, load_config, save_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
assert len(CONFIGS) == 21


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_configuration_loads_and_refuses_a_misspelled_key(path):
    stage = STAGES[path.stem.split("_")[0]]
    load_config(stage, path)
    with pytest.raises(ValueError, match="stepz"):
        load_config(stage, path, ["stepz=3"])


def test_overrides_win_over_the_file_and_the_file_over_defaults(tmp_path):
    file = tmp_path / "vae.yaml"
    file.write_text("steps: 7\nmel: {n_mels: 32}\n")
    config = load_config(VAEConfig, file, ["steps=9", "mel.hop_length=80"])
    assert (config.steps, config.mel.n_mels, config.mel.hop_length, config.seed) == (9, 32, 80, 0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps=0", "steps must be positive, got 0"),
        ("steps=many", "many"),
        ("warmup_steps=200000", r"warmup_steps must be from 0 to steps \(100000\), got 200000"),
        ("schedule=linear", "constant, cosine"),
        ("channels=[100]", "multiples of norm_groups"),
        ("mel.n_mels=30", "n_mels"),
        ("mel.hop_length=0", "hop_length"),
        ("steps", "key=value"),
    ],
)
def test_bad_values_are_named(override, message):
    with pytest.raises(ValueError, match=message):
        load_config(VAEConfig, None, [override])


def test_a_cosine_has_no_cooldown():
    with pytest.raises(ValueError, match="cooldown_steps=5 is for schedule=constant"):
        load_config(VAEConfig, None, ["schedule=cosine", "cooldown_steps=5"])


@pytest.mark.parametrize(
    "override",
    ["ema_decay=0.5", "text_condition_last=0.5", "validation_batches=2", "mixup=plain", "drop_condition=0.1"],
)
def test_what_concepts_do_not_use_is_refused(override):
    name = override.split("=")[0]
    with pytest.raises(ValueError, match=f"concepts are learned with the default {name}="):
        load_config(STAGES["concept"], None, [override])


def test_a_vocoder_segment_shorter_than_a_frame_is_refused():
    with pytest.raises(ValueError, match="at least n_fft"):
        load_config(STAGES["vocoder"], None, ["segment_samples=800"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_config(VAEConfig, tmp_path / "none.yaml")


def test_bundled_configurations_are_found_by_name(tmp_path):
    for size in ("original", "mini", "tiny"):
        assert load_config(STAGES["clap"], find_config(size, "clap")) == load_config(
            STAGES["clap"], Path(__file__).parents[2] / "configs" / size / "clap.yaml"
        )
    with pytest.raises(FileNotFoundError, match="mini, original, stereo, tiny"):
        find_config(tmp_path / "none.yaml", "vae")


def test_saved_configurations_come_back_equal(tmp_path):
    config = load_config(VAEConfig, None, ["channels=[32, 64]", "mel.clip_s=5.12"])
    save_config(config, tmp_path / "c.yaml")
    again = load_config(VAEConfig, tmp_path / "c.yaml")
    assert again == config
    assert differences(config, load_config(VAEConfig, tmp_path / "c.yaml", ["mel.clip_s=1"])) == [
        "mel.clip_s: 5.12 -> 1.0"
    ]


def test_no_is_a_word_where_a_word_is_wanted():
    config = load_config(STAGES["diffusion"], None, ["mixed_precision=no", "gradient_checkpointing=yes", "compile=no"])
    assert (config.mixed_precision, config.gradient_checkpointing, config.compile) == ("no", True, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("steps: [1\n", ("line 2",)),
        ("steps: 2\nsteps: 3\n", ("line 2", "duplicate key steps")),
        ("- a\n", ("key: value",)),
        ("5\n", ()),
        ("\tsteps: 3\n", ("line 1",)),
        ("steps: *x\n", ("line 1", "alias")),
        ("steps: 3\n---\nsteps: 4\n", ("line 2", "document")),
        ("\0", ()),
        ("seed: 1\nmel: 5\n", ("mel",)),
        ("seed: 1\nbetas: [0.9]\n", ("betas",)),
        ("channels: [32, 1.5]\n", ("channels",)),
        ("mel:\n  foo: 3\n", ("mel.foo",)),
        ("steps: two\n", ("steps", "'two'")),
        ("steps: -1\n", ("steps", "-1")),
        ("mel:\n  n_mels: 0\n", ("mel.n_mels", "0")),
        ("steps:\n", ("steps",)),
    ],
)
def test_errors_of_a_file_name_it_and_the_key(text, words, tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path))) as error:
        load_config(VAEConfig, path)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "some.yaml").write_bytes("steps: 3 # é".encode("latin-1"))
    with pytest.raises(ValueError, match=r"some\.yaml is not a text in UTF-8"):
        load_config(VAEConfig, tmp_path / "some.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "steps=two",
        "steps=[1",
        "steps=",
        "mel=3",
        "mel.n_mels=x",
        "mel.n_mels=0",
        "mel.foo=3",
        "betas=0.9",
        "betas=[2,3]",
        "learning_rate=inf",
        "weight_decay=nan",
        "weight_decay=-1",
        "kl_weight=-1",
        "channels=[]",
        "channels=[-32]",
        "segment_s=inf",
        "seed=-1",
        "a.b=3",
        "seed=9999999999",
        "adversarial_weight=nan",
    ],
)
def test_errors_of_an_override_name_its_key_and_no_file(override):
    """Beside a file that is right."""
    file = find_config("tiny", "vae")
    with pytest.raises(ValueError, match=re.escape(override.partition("=")[0])) as error:
        load_config(VAEConfig, file, ["batch_size=2", override])
    assert "vae.yaml" not in str(error.value)
