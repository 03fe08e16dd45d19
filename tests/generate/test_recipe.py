"""Requests refuse what cannot be before anything is loaded, and recipes of all versions are read."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from musicldm.audio import write_audio
from musicldm.generate import Request
from musicldm.generate.recipe import DEFAULTS, EVERYWHERE, FIELDS, complete, compose, load_recipe, warn_of_changes

BEFORE = sorted((Path(__file__).parents[1] / "golden_data" / "recipes_before").glob("*.json"))
assert BEFORE


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", BEFORE, ids=lambda path: path.stem)
def test_recipes_written_before_sessions_mean_the_same(path):
    recipe = read(path)
    request = Request.from_recipe(recipe)
    assert (request.prompt, request.seed) == (recipe["prompt"], recipe["seed"])
    assert list(request.guidance_interval) == recipe["guidance_interval"]
    for name in ("seconds", "steps", "guidance", "negative", "candidates", "scheduler", "lora", "concept", "novelty"):
        assert getattr(request, name) == recipe[name]
    opened = {name: recipe[name] for name in ("model", "dtype", "fast", "revision", "adapters", "device", "versions")}
    found = {name: recipe[name] for name in ("seconds", "score", "sampling_rate", "nearest_training_clips")}
    again = compose(request, opened, found)
    assert again == recipe
    assert list(again) == list(recipe)  # the order of fields too


def test_the_fields_of_a_recipe_begin_with_all_that_can_be_chosen():
    assert tuple(DEFAULTS) == FIELDS == tuple(read(BEFORE[0]))[1 : 1 + len(FIELDS)]
    assert DEFAULTS["model"] == "mini"


def test_early_recipes_lack_settings():
    early = {name: value for name, value in read(BEFORE[0]).items() if name not in ("guidance_interval", "lora")}
    assert Request.from_recipe(early).guidance_interval == EVERYWHERE  # there was no interval: guided in all steps
    assert Request.from_recipe(early).lora is None
    assert complete(early)["fast"] is True


def test_a_foreign_recipe_is_refused_by_its_file(tmp_path):
    write_audio(tmp_path / "a.wav", np.zeros(100), 8000, {"title": "not ours"})
    with pytest.raises(ValueError, match=r"a\.wav carries no recipe of `musicldm generate`: its prompt is None"):
        load_recipe(tmp_path / "a.wav")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("candidates", 0), ("guidance_interval", ["a", "b"]), ("dtype", "float8"), ("dtype", 16), ("lora", 5)),
        *(("model", 3), ("model", " "), ("fast", "yes"), ("fast", 1), ("seed", 1.5), ("seed", "1"), ("steps", "25")),
        *(("seconds", "10"), ("scheduler", 5), ("concept", "a"), ("novelty", 1), ("max_similarity", "0.9")),
        *(("negative", 3), ("prompt", ["a"]), ("guidance", True), ("adapters", [1]), ("revision", 5), ("versions", 1)),
    ],
)
def test_each_field_of_a_recipe_is_checked_by_name(tmp_path, name, value):
    recipe = read(BEFORE[0]) | {name: value}
    write_audio(tmp_path / "a.wav", np.zeros(100), 8000, recipe)
    with pytest.raises(ValueError, match=rf"the recipe in .*a\.wav cannot be followed: .*{name}"):
        load_recipe(tmp_path / "a.wav")
    if name in DEFAULTS:  # an option in its place will do
        assert load_recipe(tmp_path / "a.wav", {name: DEFAULTS[name]})[name] == value


def test_a_recipe_is_a_dictionary():
    with pytest.raises(ValueError, match="the recipe must be a dictionary of fields, got 3"):
        complete(3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": " "}, "prompt ' ' is empty"),
        ({"prompt": 3}, "prompt must be a text, got 3"),
        ({"seconds": 0}, "seconds must be a finite number above 0, got 0"),
        ({"seconds": float("nan")}, "seconds must be a finite number"),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"guidance": float("inf")}, "guidance must be a finite number, got inf"),
        ({"guidance_interval": (0.7, 0.2)}, "guidance_interval must be two shares"),
        ({"guidance_interval": (0.5,)}, "guidance_interval must be two shares"),
        ({"guidance_interval": None}, "guidance_interval must be two shares"),
        ({"negative": None}, "negative must be a text"),
        ({"seed": -1}, "seed must be a whole number from 0"),
        ({"seed": True}, "seed must be a whole number from 0"),
        ({"candidates": 1001}, "candidates must be a whole number from 1 to 1000, got 1001"),
        ({"scheduler": "magic"}, "unknown scheduler 'magic'; choose one of ddim, "),
        ({"lora": "folder"}, "lora must be a list of folders, got 'folder'"),
        ({"index": "folder"}, "index is for novelty"),
        ({"max_similarity": 0.9}, "max_similarity is for novelty"),
        ({"novelty": "maybe"}, "novelty must be one of report, avoid, least_similar, got 'maybe'"),
        ({"novelty": "avoid", "max_similarity": 2}, "max_similarity is a cosine from -1 to 1, got 2"),
        ({"novelty": "avoid", "max_similarity": "0.9"}, "max_similarity must be a finite number, got '0.9'"),
        ({"novelty": "avoid", "index": 5}, "index must be the folder of an index, or None, got 5"),
        ({"novelty": ["avoid"]}, "novelty must be one of"),
        ({"guidance_interval": ["a", "b"]}, "guidance_interval must be two shares"),
        ({"guidance_interval": (True, True)}, "guidance_interval must be two shares"),
        ({"scheduler": ["ddim"]}, "unknown scheduler"),
        ({"lora": [5]}, "lora must be a list of folders"),
        ({"concept": {"a": 1}}, "concept must be a list of folders"),
        ({"steps": True}, "steps must be a whole number"),
        ({"guidance": 10**400}, "guidance must be a finite number"),
        ({"seconds": 10**400}, "seconds must be a finite number above 0"),
        ({"prompt": "cut \ud83c"}, "prompt .* is no Unicode text"),
        ({"negative": "cut \ud83c"}, "negative .* is no Unicode text"),
    ],
)
def test_a_wrong_value_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(Request("calm piano"), **changes)


def test_requests_are_made_and_refused_without_torch():
    """So wrong values are found before anything is loaded."""
    code = (
        "import sys\nfrom musicldm.generate import Request\nRequest('a', seconds=3)\n"
        "try:\n    Request('a', steps=-1)\nexcept ValueError as error:\n    print(error, 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "steps must be a whole number of at least 1, got -1 False\n"


def test_prompts_of_one_call_have_seeds_apart():
    requests = Request.for_prompts(["a", "b", "c"], seed=5, candidates=3)
    assert [(one.prompt, one.seed) for one in requests] == [("a", 5), ("b", 8), ("c", 11)]
    first, second = Request.for_prompts(["a", "b"])
    assert second.seed == first.seed + 1


def test_another_model_or_adapter_is_told(recwarn):
    recipe = {"revision": "old", "adapters": {"a": "1", "b": "2"}}
    warn_of_changes(recipe, {"model": "mini", "revision": "old", "adapters": {"a": "1"}})
    warn_of_changes({}, {"model": "mini", "revision": "old", "adapters": {"a": "1"}})
    assert not recwarn
    warn_of_changes(recipe, {"model": "mini", "revision": "new", "adapters": {"a": "1", "b": "3"}})
    model, adapter = (str(one.message) for one in recwarn)
    assert model.startswith("the recipe was made with revision old of its model, mini is new")
    assert adapter.startswith("the recipe was made with revision 2 of b, this is 3")
