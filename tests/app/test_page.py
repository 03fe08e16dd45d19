"""The page in a real Chromium: each flow from the first click to the file."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import sync_playwright

from tests.app.helpers import process, wav
from tests.helpers.scores import write_score

pytestmark = pytest.mark.slow
CHROMIUM = os.environ.get("MUSICLDM_CHROMIUM")  # a program; set but missing fails
WAIT_MS = 60_000


@pytest.fixture(scope="module")
def browser():
    """Chromium, without a display."""
    program = shutil.which(CHROMIUM or "chromium")
    if program is None and not CHROMIUM:
        pytest.skip("Chromium is not installed; name it in MUSICLDM_CHROMIUM")
    assert program is not None, f"MUSICLDM_CHROMIUM names {CHROMIUM}, which is not there"
    arguments = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=program, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory, tiny_folder):
    """The folder of results and the client of a running server."""
    out = tmp_path_factory.mktemp("page") / "music"
    with process(out, tiny_folder) as (_, client):
        yield out, client


@pytest.fixture
def page(browser, served):
    """The page, ready; it must log no error."""
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    problems = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    opened.goto(str(served[1].base_url))
    opened.wait_for_selector("body[data-ready=yes]", timeout=WAIT_MS)
    yield opened
    opened.close()
    assert problems == []


def until(page, expression: str) -> None:
    """Wait until a JavaScript ``expression`` is true."""
    for _ in range(WAIT_MS // 50):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"{expression} has not become true")


def make(page, prompt: str, **fields) -> str:
    """Make music with the form; the id of the piece that is then open."""
    page.fill("#prompt", prompt)
    page.eval_on_selector(
        "#seconds", "(one) => { one.value = 2; one.dispatchEvent(new Event('input', {bubbles: true})); }"
    )
    page.eval_on_selector("#make details", "(one) => { one.open = true; }")
    for name, value in ({"steps": "2", "seed": "4"} | fields).items():
        page.fill(f"#make-form [name={name}]", value)
    page.click("text=Make music")
    return opened(page, lambda: page.input_value("#piece-name") == prompt)


def opened(page, is_it) -> str:
    """The id of the piece that is open as soon as ``is_it`` says that it is the wanted one."""
    for _ in range(600):
        if page.is_visible("#piece") and is_it() and not page.query_selector("#queue li"):
            return page.evaluate("location.hash.slice(1)")
        page.wait_for_timeout(100)
    raise AssertionError(page.inner_text("body"))


def edited(page, button: str) -> str:
    """Press a button of the edits; the id of the version that comes."""
    before = page.evaluate("location.hash")
    page.click(button)
    return opened(page, lambda: page.evaluate("location.hash") != before)


def audio(served, identity: str) -> np.ndarray:
    out, client = served
    return soundfile.read(out / client.get(f"/v1/results/{identity}").json()["file"], dtype="int16")[0]


def select(page, first: float, last: float) -> None:
    """Drag over the waveform, from and to shares of its width."""
    page.uncheck("#snap")
    box = page.query_selector(".version:not([hidden])").bounding_box()
    y = box["y"] + 60
    page.mouse.move(box["x"] + first * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + (first + last) / 2 * box["width"], y, steps=4)
    page.mouse.move(box["x"] + last * box["width"], y, steps=4)
    page.mouse.up()
    until(page, "document.getElementById('selection').textContent.startsWith('Selected')")


def test_make_then_change_a_part_extend_vary_and_retake(page, served):
    first = make(page, "calm piano at night")
    original = audio(served, first)
    page.wait_for_timeout(500)
    select(page, 0.3, 0.6)
    page.fill("#edit-prompt", "loud drums")
    second = edited(page, "text=Replace selection")
    changed = audio(served, second)
    assert len(changed) == len(original)
    different = np.flatnonzero(changed != original)
    assert 0.25 * len(original) < different.min() < different.max() < 0.65 * len(original)
    page.fill("#edit-form [name=after]", "1")
    third = edited(page, "text=Extend")
    assert np.array_equal(audio(served, third)[: len(original)], changed)
    assert len(audio(served, third)) == len(original) + 8000
    assert len(page.query_selector_all("#versions button")) == 3
    page.click("#versions button >> nth=0")
    assert page.evaluate("location.hash.slice(1)") == first
    varied = edited(page, "text=Vary all")
    assert not np.array_equal(audio(served, varied), original)
    page.click("#versions button >> nth=0")
    retake = edited(page, "button:text-is('Retake')")
    assert served[1].get(f"/v1/results/{retake}").json()["kind"] == "retake"


def test_versions_switch_at_the_same_position(page, served):
    make(page, "steady bass")
    page.fill("#edit-prompt", "flute")
    edited(page, "text=Vary all")
    page.click("#versions button >> nth=0")
    page.keyboard.press("ArrowRight")
    until(page, "document.getElementById('clock').textContent.startsWith('0:01')")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#clock").startswith("0:01")
    assert page.get_attribute("#versions button >> nth=1", "aria-pressed") == "true"


def test_playing_by_the_keyboard(page, served):
    make(page, "short song")
    page.click("#work-title")
    page.keyboard.press("Space")
    until(page, "document.getElementById('play').getAttribute('aria-label') === 'Pause'")
    page.keyboard.press("Space")
    until(page, "document.getElementById('play').getAttribute('aria-label') === 'Play'")


def test_a_recording_is_opened_and_edited(page, served, tmp_path):
    (tmp_path / "My own take.wav").write_bytes(wav(2.0, channels=2))
    page.set_input_files("#open-file", tmp_path / "My own take.wav")
    opened(page, lambda: page.input_value("#piece-name") == "My own take")
    page.fill("#edit-prompt", "more drums")
    page.fill("#edit-form [name=before]", "1")
    page.fill("#edit-form [name=after]", "0")
    identity = edited(page, "text=Extend")
    assert np.array_equal(
        audio(served, identity)[8000:], soundfile.read(tmp_path / "My own take.wav", dtype="int16")[0]
    )


def test_history_is_kept_searched_starred_deleted_and_brought_back(page, served):
    make(page, "a hurdy-gurdy alone")
    page.click("#star")
    page.reload()
    page.wait_for_selector("body[data-ready=yes]", timeout=WAIT_MS)
    page.fill("#search", "hurdy")
    until(page, "document.querySelectorAll('#history button').length === 1")
    assert page.inner_text("#history b").startswith("★")
    page.click("#history button")
    page.wait_for_selector("#piece:not([hidden])", timeout=WAIT_MS)
    page.click("#delete")
    until(page, "document.querySelectorAll('#history button').length === 0")
    page.click("#toast button")
    until(page, "document.querySelectorAll('#history button').length === 1")


def test_a_long_job_shows_progress_and_is_cancelled(page, served):
    page.fill("#prompt", "endless music")
    page.eval_on_selector("#make details", "(one) => { one.open = true; }")
    page.fill("#make-form [name=steps]", "200")
    page.click("text=Make music")
    page.wait_for_selector("#queue li progress", timeout=WAIT_MS)
    page.reload()  # it is still there
    page.wait_for_selector("#queue li button", timeout=WAIT_MS)
    page.click("#queue li button")
    until(page, "document.querySelectorAll('#queue li').length === 0")


def test_mistakes_are_told_where_they_were_made(page, served):
    page.fill("#prompt", "   ")
    page.click("text=Make music")
    assert "Describe the music first" in page.inner_text("#make-error")
    page.fill("#prompt", "calm piano")
    page.eval_on_selector("#make details", "(one) => { one.open = true; }")
    page.fill("#make-form [name=steps]", "5000")
    page.click("text=Make music")
    assert "Steps must be a number from 2 to 200" in page.inner_text("#make-error")
    page.fill("#make-form [name=steps]", "2")
    make(page, "calm piano for errors")
    page.click("text=Replace selection")
    assert "Select a stretch" in page.inner_text("#edit-error")


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_it_can_be_read_by_all_at_any_width(page, served, width, theme):
    from axe_playwright_python.sync_playwright import Axe

    make(page, "music for everybody")
    page.set_viewport_size({"width": width, "height": 844})
    page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = Axe().run(page).response["violations"]
    serious = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in serious] == []


def test_the_page_asks_for_the_token(browser, tmp_path, tiny_folder):
    with process(tmp_path / "music", tiny_folder, "--token", "a-long-token") as (_, client):
        opened_page = browser.new_page()
        opened_page.goto(str(client.base_url))
        opened_page.fill("#token", "wrong-token")
        opened_page.click("#login button")
        until(opened_page, "document.getElementById('login-error').textContent !== ''")
        opened_page.fill("#token", "a-long-token")
        opened_page.click("#login button")
        opened_page.wait_for_selector("body[data-ready=yes]", timeout=WAIT_MS)
        assert "a-long-token" not in opened_page.evaluate("document.cookie")
        opened_page.close()


def test_nothing_is_loaded_from_elsewhere():
    static = Path(__file__).parents[2] / "musicldm" / "app" / "static"
    own = [path for path in static.iterdir() if path.suffix in (".html", ".css", ".js")]
    assert len(own) >= 6
    for path in own:
        text = path.read_text()
        assert "https://" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_chords_and_a_recording_are_followed(browser, tmp_path, context_folder):
    (tmp_path / "song.wav").write_bytes(wav(1.0))
    with process(tmp_path / "music", context_folder) as (_, client):
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(str(client.base_url))
        page.wait_for_selector("body[data-ready=yes]", timeout=WAIT_MS)
        page.click("#follow summary")
        page.fill("#follow [name=chords]", "Am F")
        page.set_input_files("#follow [name=along]", tmp_path / "song.wav")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        made = client.get(f"/v1/results/{make(page, 'a trio')}").json()
        assert made["recipe"]["context_kinds"] == ["chords", "along"]
        assert made["seconds"] == 4  # the score says how long
        assert client.get(page.get_attribute("#score", "href")).content[:4] == b"MThd"
        page.click("#follow .clear")
        plain = client.get(f"/v1/results/{make(page, 'a duo')}").json()
        assert "context_kinds" not in plain["recipe"]
        assert plain["seconds"] == 2
        assert not page.is_visible("#score")
        page.close()


def test_a_selected_stretch_follows_chords_and_a_midi_file(browser, tmp_path, context_folder):
    from axe_playwright_python.sync_playwright import Axe

    write_score(tmp_path / "tune.mid", [(0.0, 1.0, 60, 0), (1.0, 1.0, 64, 0)])
    with process(tmp_path / "music", context_folder) as (_, client):
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(str(client.base_url))
        page.wait_for_selector("body[data-ready=yes]", timeout=WAIT_MS)
        make(page, "a trio")
        page.click("#edit-follow summary")
        page.fill("#edit-follow [name=chords]", "Am")
        page.fill("#edit-follow [name=chords_bpm]", "240")
        page.set_input_files("#edit-follow [name=midi]", tmp_path / "tune.mid")
        assert not page.is_visible("#edit-follow [name=along]")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        found = Axe().run(page).response["violations"]
        assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
        page.uncheck("#snap")
        page.fill("#edit-form [name=from]", "0.5")  # without a mouse
        page.fill("#edit-form [name=to]", "1.5")
        page.press("#edit-form [name=to]", "Tab")
        until(page, "document.getElementById('selection').textContent.startsWith('Selected 0:00.50 to 0:01.50')")
        replaced = client.get(f"/v1/results/{edited(page, 'text=Replace selection')}").json()
        assert replaced["recipe"]["regions_s"] == [[0.5, 1.5]]
        assert replaced["recipe"]["context_kinds"] == ["notes", "chords"]
        assert client.get(page.get_attribute("#score", "href")).content[:4] == b"MThd"
        page.click("#edit-follow .clear")
        plain = client.get(f"/v1/results/{edited(page, 'text=Vary all')}").json()
        assert "context_kinds" not in plain["recipe"]
        page.close()


def test_a_model_that_follows_nothing_does_not_offer_it(page):
    assert page.is_visible("#make-form")
    assert not page.is_visible("#follow")
    make(page, "nothing to follow")
    assert page.is_visible("#edit-form")
    assert not page.is_visible("#edit-follow")
