"""Files of sections: what each line says, and errors that name the line."""

import pytest

from musicldm.generate import Request
from musicldm.generate.recipe import complete, compose
from musicldm.generate.sections import parse_section, read_sections


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("20 calm piano", ("calm piano", 20.0)),
        ("2.5 s calm piano", ("calm piano", 2.5)),
        ("20 seconds of rain", ("of rain", 20.0)),
        ("20 bartok quartet", ("bartok quartet", 20.0)),
        ("8 bars drums come in", ("drums come in", 16.0)),
        ("1 bar\tdrums", ("drums", 2.0)),
        ("0.5 bars a fill", ("a fill", 1.0)),
        ("4 soul in C# minor", ("soul in C# minor", 4.0)),
    ],
)
def test_a_line_is_a_length_and_a_prompt(line, expected):
    assert parse_section(line, bpm=120) == expected


def test_bars_are_of_a_meter():
    assert parse_section("8 bars a waltz", bpm=90, meter="3/4") == ("a waltz", 16.0)


def test_comments_and_empty_lines_are_left_out(tmp_path):
    (tmp_path / "a.txt").write_text("\ufeff# my piece\n20 calm piano\n\n   # drums\n  10 drums come in \n", "utf-8")
    assert read_sections(tmp_path / "a.txt") == (("calm piano", 20.0), ("drums come in", 10.0))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("calm piano", "does not begin with a length"),
        ("20", "has no prompt"),
        ("8 bars", "has no prompt"),
        ("0 silence", "must be above 0"),
        ("-3 piano", "must be a number of at least 0"),
        ("nan piano", "must be a finite number"),
        ("8 bars drums", "give it with --bpm"),
    ],
)
def test_errors_name_the_line(tmp_path, line, message):
    (tmp_path / "a.txt").write_text(f"# one\n20 calm piano\n{line}\n")
    with pytest.raises(ValueError, match=rf"line 3 of .*a\.txt: .*{message}"):
        read_sections(tmp_path / "a.txt")


@pytest.mark.parametrize("content", ["", "\n\n", "# only words\n"])
def test_a_file_without_sections_is_refused(tmp_path, content):
    (tmp_path / "a.txt").write_text(content)
    with pytest.raises(ValueError, match="lists no sections"):
        read_sections(tmp_path / "a.txt")


def test_a_recipe_holds_the_sections():
    request = Request.of_sections([("calm piano", 20), ("drums come in", 10.5)], 3, steps=4)
    assert request.prompt == "calm piano; drums come in"
    about = {"model": "mini", "dtype": "float32", "fast": True}
    recipe = compose(request, about, {"seconds": 30.5})
    assert recipe["sections"] == [["calm piano", 20.0], ["drums come in", 10.5]]
    assert Request.from_recipe(recipe) == request
    assert "sections" not in compose(Request("a", seconds=3), about, {})
    assert complete(recipe)["seconds"] == 30.5


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ("ab", "sections must be a list of pairs"),
        ([("a",)], "a section must be a pair"),
        ([("a", 0)], "the seconds of 'a' must be a finite number above 0"),
        ([("", 1)], "the prompt '' is empty"),
    ],
)
def test_sections_that_cannot_be_are_refused(sections, message):
    with pytest.raises(ValueError, match=message):
        Request("a", sections=sections)


def test_sections_are_as_long_as_they_are_together():
    with pytest.raises(ValueError, match="leave seconds=5 out"):
        Request.of_sections([("a", 2)], seconds=5)
