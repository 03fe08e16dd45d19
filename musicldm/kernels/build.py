"""Compiling the CUDA kernel on first use.

    musicldm/kernels/csrc/ -> nvcc -> attention-DIGEST.so, in the user's cache folder

It is compiled against torch's stable ABI, so that one library serves torch 2.10 and every later version. This module
needs the standard library alone.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
TORCH_TARGET_VERSION = "0x020a000000000000"  # 2.10
# Machine code for Ampere and Hopper, and PTX from which drivers make that of newer ones.
ARCHITECTURES = (
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=[sm_90,compute_90]",
)
FLAGS = ("-std=c++17", "-O3", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={TORCH_TARGET_VERSION}")
LIMIT_S = 900  # a compilation takes half a minute


def library_name() -> str:
    """The library's file name; it changes with the sources and the options, so that a stale one is never loaded."""
    digest = hashlib.sha256(" ".join(FLAGS + ARCHITECTURES).encode())
    for path in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return f"attention-{digest.hexdigest()[:12]}.so"


def cache_folder() -> Path:
    """Where a library that was compiled on first use is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "musicldm"


def find_nvcc() -> str | None:
    """CUDA's compiler: of CUDA_HOME if that is set, else on the path, else of the usual place."""
    if home := os.environ.get("CUDA_HOME"):
        return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def compiler_command(nvcc: str, torch_folder: Path, *options: str) -> list[str]:
    """The command that compiles the kernel with the headers in ``torch_folder/include``."""
    return [nvcc, *FLAGS, f"-I{torch_folder / 'include'}", *options, str(SOURCES / "attention.cu")]


def compile_kernel(nvcc: str, torch_folder: Path, library: Path) -> None:
    """Compile to ``library``, which appears whole or not at all.

    Raises:
        RuntimeError: with the compiler's last lines.
        OSError: if the library cannot be written.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        link = f"-L{torch_folder / 'lib'}", "-ltorch_cpu", "-ltorch_cuda"
        options = "-shared", "-Xcompiler", "-fPIC", *ARCHITECTURES, "-o", str(made), *link
        try:
            subprocess.run(
                compiler_command(nvcc, torch_folder, *options),
                check=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT_S,
            )
        except subprocess.CalledProcessError as error:
            raise RuntimeError(f"{nvcc} failed: {' / '.join(error.stdout.strip().splitlines()[-3:])}") from error
        except subprocess.TimeoutExpired as error:
            raise RuntimeError(f"{nvcc} took more than {LIMIT_S} s") from error
        made.replace(library)
