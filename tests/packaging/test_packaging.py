"""The package as others get it: installed from a wheel, installed for editing, or a bare checkout."""

import configparser
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import soundfile

from musicldm.config import configs_folder

ROOT = Path(__file__).parents[2]
TOP = ("augment", "musicldm", "vocoder")
FIND = "from musicldm.config import find_config; print(find_config('tiny', 'vae'))"


def call(*command, cwd: Path, **options) -> str:
    """Standard output of a command that must succeed; no variable of this process changes what it imports."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the files that git does not ignore, as they are now: no build folder, no cache."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    names = [name for name in names if name.startswith((*TOP, "configs/", "setup.cfg", "pyproject", "README", "LIC"))]
    if not names:
        pytest.skip("not a git checkout")
    folder = tmp_path_factory.mktemp("checkout")
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def environment(folder: Path) -> Path:
    """Python of a new environment that sees the libraries of this one, but not its musicldm."""
    venv.create(folder, symlinks=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")  # .pth files in there have no effect
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", out]
    call(sys.executable, "-m", "pip", "wheel", *options, checkout, cwd=out)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    python = environment(tmp_path_factory.mktemp("installed"))
    call(python, "-m", "pip", "install", "--no-deps", "--quiet", "--force-reinstall", wheel, cwd=wheel.parent)
    return python


@pytest.fixture
def namesakes(tmp_path) -> Path:
    """A user's folder with modules that have the names of ours."""
    for name in ("configs.py", "augment.py", "vocoder/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("raise RuntimeError('this is the module of a user')\n")
    return tmp_path


def test_every_package_is_listed():
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "setup.cfg")
    listed = parser["options"]["packages"].split()
    folders = [path.parent.relative_to(ROOT) for top in TOP for path in (ROOT / top).rglob("__init__.py")]
    assert sorted(listed) == sorted(["musicldm.configs", *(".".join(folder.parts) for folder in folders)])


def test_configurations_lie_in_the_package_or_beside_it(tmp_path):
    package = tmp_path / "musicldm"
    with pytest.raises(FileNotFoundError, match="install the package again"):
        configs_folder(package)
    (tmp_path / "configs" / "original").mkdir(parents=True)
    assert configs_folder(package) == tmp_path / "configs"
    (package / "configs" / "original").mkdir(parents=True)
    assert configs_folder(package) == package / "configs"


@pytest.mark.parametrize("name", ["augment.py", "vocoder/__init__.py"])
def test_a_module_in_the_way_is_named(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    command = [sys.executable, "-c", "import sys; sys.path[1:1] = [sys.argv[1]]; import musicldm", ROOT]
    done = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True)
    package = Path(name).parts[0].removesuffix(".py")
    assert f"ImportError: {tmp_path / name} hides the package {package!r}" in done.stderr
    assert "rename it" in done.stderr


def test_a_bare_checkout_reads_the_configurations_beside_the_package(checkout, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(checkout)!r}); {FIND}"
    assert call(sys.executable, "-c", code, cwd=tmp_path).strip() == str(checkout / "configs" / "tiny" / "vae.yaml")


@pytest.mark.slow
def test_an_editable_install_reads_the_configurations_beside_the_package(checkout, tmp_path):
    python = environment(tmp_path / "environment")
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--force-reinstall"]
    call(python, "-m", "pip", "install", *options, "--editable", checkout, cwd=tmp_path)
    assert call(python, "-c", FIND, cwd=tmp_path).strip() == str(checkout / "configs" / "tiny" / "vae.yaml")


@pytest.mark.slow
def test_the_wheel_holds_all_that_is_needed_and_no_other_top_level_package(wheel):
    names = ZipFile(wheel).namelist()
    assert wheel.name.endswith("-py3-none-any.whl")
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(TOP)
    expected = ["kernels/csrc/attention.cu", "kernels/csrc/primitives.cuh", "kernels/csrc/attention_kernel.h"]
    expected += ["py.typed", "pretrained/mini/model_index.json", "pretrained/mini/README.md", "configs/tiny/vae.yaml"]
    assert {f"musicldm/{name}" for name in expected} | {"vocoder/py.typed", "augment/py.typed"} <= set(names)
    known = {str(path.relative_to(ROOT)) for path in (ROOT / "musicldm" / "pretrained").rglob("*") if path.is_file()}
    assert known <= set(names)


@pytest.mark.slow
def test_an_installed_package_works_beside_modules_of_the_same_names(installed, namesakes):
    time_s = np.arange(20_480) / 16_000
    for i in range(8):
        soundfile.write(namesakes / f"{i}.flac", 0.4 * np.sin(2 * np.pi * (200 + 50 * i) * time_s), 16_000)
    rows = [{"file_name": f"{i}.flac", "text": "", "split": "validation" if i > 5 else "train"} for i in range(8)]
    (namesakes / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    command = installed.with_name("musicldm")
    call(command, "generate", "calm piano", "--seconds", "1", "--steps", "1", "--out", "music", cwd=namesakes)
    (wav,) = (namesakes / "music").glob("*.wav")
    assert soundfile.info(wav).frames == 16_000
    training = ["train", "vae", "--config", "tiny", "data=.", "steps=2", "adversarial_from=1", "--out", "run"]
    call(installed, "-m", "musicldm", *training, cwd=namesakes)
    assert (namesakes / "run" / "final" / "config.json").is_file()
    assert "musicldm" in call(command, "info", cwd=namesakes)
    assert "calm piano" in call(installed, "-m", "musicldm", "info", wav, cwd=namesakes)
    found = Path(call(installed, "-P", "-c", FIND, cwd=namesakes).strip())
    assert found.parts[-5:] == ("site-packages", "musicldm", "configs", "tiny", "vae.yaml")
