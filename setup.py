"""What setup.cfg cannot say: the CUDA kernel is compiled while installing, where nvcc and torch's headers are there.

Without them, or if compiling fails, the package is whole all the same: attention then runs through torch, and the
kernel is compiled on first use once that can be done.
"""

import importlib.util
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).parent


def load_builder():
    """musicldm/build_kernel.py by itself; the package may lack its dependencies now."""
    spec = importlib.util.spec_from_file_location("build_kernel", HERE / "musicldm" / "build_kernel.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def find_torch() -> Path | None:
    """torch's folder with its headers; pip's isolated builds hide the environment's packages from imports only."""
    spec = importlib.util.find_spec("torch")
    places = [Path(spec.origin).parent] if spec else []
    places.append(Path(sysconfig.get_path("purelib")) / "torch")
    return next((place for place in places if (place / "include" / "torch" / "csrc" / "stable").is_dir()), None)


class BuildKernel(build_ext):
    """Compiles the kernel's library into musicldm/csrc/, of the source tree in an editable installation."""

    def library(self) -> Path:
        root = HERE if self.inplace or self.editable_mode else Path(self.build_lib)
        return root / "musicldm" / "csrc" / builder.library_name()

    def run(self) -> None:
        if self.library().is_file():
            return
        try:
            builder.compile_kernel(nvcc, torch_folder, self.library())
        except (OSError, RuntimeError) as error:
            self.warn(f"the CUDA attention kernel was not compiled, attention will run through torch: {error}")

    def get_outputs(self) -> list[str]:
        return [str(self.library())] if self.library().is_file() else []

    def get_output_mapping(self) -> dict[str, str]:
        return {}


builder = load_builder()
nvcc, torch_folder = builder.find_nvcc(), find_torch()
kernel = [Extension("musicldm.csrc.attention", sources=[])] if nvcc and torch_folder else []
setup(ext_modules=kernel, cmdclass={"build_ext": BuildKernel})
