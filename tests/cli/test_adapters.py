"""``--lora`` and ``--concept``: they change the music, are part of the recipe, and combine."""

import json

import pytest
import torch
from safetensors.torch import save_file

from musicldm import MusicLDMPipeline
from musicldm.audio import read_audio, read_recipe
from musicldm.cli import main
from musicldm.config import LoraConfig
from musicldm.generate.recipe import DEFAULTS
from musicldm.models.adapters import EMBEDDING_FILE, add_adapter, load_concept, save_adapter, save_concept


@pytest.fixture(scope="module")
def adapters(tiny_folder, tmp_path_factory):
    """Two adapters and two concepts with random weights, as folders by name."""
    folders = {}
    for seed, name in enumerate(("warm", "cold", "<mine>", "<yours>")):
        torch.manual_seed(seed)
        unet = MusicLDMPipeline.from_pretrained(tiny_folder).unet
        add_adapter(unet, LoraConfig(rank=2))
        for parameter in unet.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.3)
        folders[name] = folder = tmp_path_factory.mktemp("adapters") / name.strip("<>")
        folder.mkdir()
        if name.startswith("<"):
            save_concept(folder, name, torch.randn(32), unet)
        else:
            save_adapter(unet, folder)
    return folders


@pytest.fixture
def generate(tiny_folder, tmp_path, capsys):
    """Run the command with few steps; gives its one record."""

    def call(*arguments):
        fixed = ["--steps", "2", "--no-figure", "--json", "--out", str(tmp_path)]
        model = [] if "--from" in arguments else ["--model", str(tiny_folder), "--seed", "0"]
        assert main(["generate", *map(str, arguments), *model, *fixed]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def heard(record):
    return torch.from_numpy(read_audio(record["file"])[0])


def test_adapters_and_concepts_change_the_music_by_their_weights(generate, adapters):
    plain = heard(generate("a waltz"))
    both = heard(generate("a waltz", "--lora", adapters["warm"], "--lora", f"{adapters['cold']}:0.5"))
    first = heard(generate("a waltz", "--lora", adapters["warm"], "--lora", f"{adapters['cold']}:0"))
    alone = heard(generate("a waltz", "--lora", adapters["warm"]))
    assert torch.equal(first, alone)
    assert min((plain - alone).norm(), (both - alone).norm()) > 0.01 * alone.norm()
    weighed = f"{adapters['<mine>']}:0"
    assert torch.equal(heard(generate("a waltz", "--concept", weighed)), plain)  # a word that the prompt does not use
    assert not torch.equal(heard(generate("<mine>, a waltz", "--concept", weighed)), plain)


def test_it_is_what_the_pipeline_makes(generate, adapters, tiny_folder):
    mine, yours, warm = (adapters[name] for name in ("<mine>", "<yours>", "warm"))
    options = ("--concept", mine, "--concept", f"{yours}:0.5", "--lora", warm)
    made = heard(generate("<mine> and <yours>", *options, "--scheduler", "ddim", "--no-fast"))
    pipeline = MusicLDMPipeline.from_pretrained(tiny_folder)
    pipeline.set_progress_bar_config(disable=True)
    load_concept(pipeline, mine)
    load_concept(pipeline, yours)
    pipeline.load_lora_weights(warm, adapter_name="warm")
    pipeline.set_adapters(["mine", "yours", "warm"], [1.0, 0.5, 1.0])
    options = {"num_inference_steps": 2, "guidance_scale": DEFAULTS["guidance"]}
    options["guidance_interval"] = DEFAULTS["guidance_interval"]
    again = pipeline("<mine> and <yours>", seed=0, **options).audios[0]
    torch.testing.assert_close(made, torch.from_numpy(again), atol=1e-3, rtol=0)


def test_a_recipe_repeats_them_and_says_when_they_changed(generate, adapters, capsys, tmp_path):
    options = ("--concept", adapters["<mine>"], "--lora", f"{adapters['warm']}:0.5")
    record = generate("<mine>, slow", *options)
    recipe = read_recipe(record["file"])
    assert recipe["lora"] == [f"{adapters['warm']}:0.5"]
    assert recipe["concept"] == [str(adapters["<mine>"])]
    assert set(recipe["adapters"]) == {str(adapters["warm"]), str(adapters["<mine>"])}
    again = generate("--from", record["file"])
    assert torch.equal(heard(again), heard(record))
    assert again["adapters"] == recipe["adapters"]
    without = generate("--from", record["file"], "--lora", f"{adapters['warm']}:0")
    assert not torch.equal(heard(without), heard(record))
    save_file({"<mine>": torch.zeros(32)}, adapters["<mine>"] / EMBEDDING_FILE)
    assert main(["generate", "--from", record["file"], "--out", str(tmp_path), "--no-figure"]) == 0
    assert "warning: the recipe was made with revision" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lora", "nowhere"), "there is no adapter at nowhere"),
        (("--lora", "nowhere:0.5"), "there is no adapter at nowhere"),
        (("--lora", "warm:heavy"), "there is no adapter at"),
        (("--concept", "warm"), "holds no concept"),
        (("--lora", "empty"), "pytorch_lora_weights"),
        (("--concept", "<mine>", "--concept", "<mine>"), "<mine> already"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message, adapters, tiny_folder, tmp_path, capsys):
    (tmp_path / "empty").mkdir()

    def place(text):
        name, colon, weight = text.partition(":")
        return f"{adapters[name]}{colon}{weight}" if name in adapters else str(tmp_path / text)

    given = [text if text.startswith("--") else place(text) for text in options]
    out = tmp_path / "out"
    assert main(["generate", "a waltz", "--model", str(tiny_folder), "--out", str(out), *given]) == 2
    error = capsys.readouterr().err.strip()
    assert message.replace("nowhere", str(tmp_path / "nowhere")) in error
    assert error.count("\n") == 0
    assert not out.exists()


def test_evaluate_takes_them_too(adapters, tiny_folder, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("<yours>, slow\n<yours>\n")
    asked = ["evaluate", "--model", str(tiny_folder), "--prompts", str(prompts), "--steps", "2", "--no-tempo", "--json"]
    asked += [
        "--concept",
        str(adapters["<yours>"]),
        "--lora",
        f"{adapters['cold']}:0.5",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(asked) == 0
    settings = json.loads((tmp_path / "out" / "metrics.json").read_text())["settings"]
    assert settings["lora"] == [f"{adapters['cold']}:0.5"]
    assert set(settings["adapters"]) == {str(adapters["cold"]), str(adapters["<yours>"])}
