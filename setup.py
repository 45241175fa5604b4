"""Builds the Cython kernels and the protobuf modules.

Switches (environment):
  PROCSERVER_SANITIZE=1   AddressSanitizer and UndefinedBehaviorSanitizer build
  PROCSERVER_NATIVE=1     compile for this machine's CPU only (-march=native)
  PROCSERVER_ANNOTATE=1   write Cython's annotated HTML beside the sources
"""

import os
import shutil
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
FLAGS = ROOT / "build" / "flags.txt"
SANITIZE = os.environ.get("PROCSERVER_SANITIZE") == "1"

# NOTE: contraction to FMA would change feature values in the last bit (FG
# arithmetic is specified step by step in float32), so it stays off.
COMPILE = ["-O3", "-fno-strict-aliasing", "-ffp-contract=off", "-Wno-unused-function"]
LINK: list[str] = []
if SANITIZE:
    flags = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]
    COMPILE = [*COMPILE[1:], "-O1", "-g", *flags]
    LINK = flags
if os.environ.get("PROCSERVER_NATIVE") == "1":
    COMPILE.append("-march=native")


def extensions() -> list[Extension]:
    return [
        Extension(
            f"cython_ext.{source.stem}",
            [str(source.relative_to(ROOT))],
            include_dirs=[numpy.get_include()],
            define_macros=[("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION")],
            extra_compile_args=COMPILE,
            extra_link_args=LINK,
        )
        for source in sorted((ROOT / "cython_ext").glob("*.pyx"))
    ]


def generate_protos() -> None:
    """Writes ``procserver/wire/pb/*_pb2.py`` (and stubs) from ``protos/``."""
    from grpc_tools import protoc

    sources = sorted((ROOT / "protos" / "procserver" / "wire" / "pb").glob("*.proto"))
    include = str(ROOT / "protos")
    out = ROOT / "procserver" / "wire" / "pb"
    out.mkdir(parents=True, exist_ok=True)
    (out / "__init__.py").write_text('"""Generated protobuf modules."""\n')
    status = protoc.main(
        [
            "protoc",
            f"-I{include}",
            f"--python_out={ROOT}",
            f"--pyi_out={ROOT}",
            *[str(source) for source in sources],
        ]
    )
    if status:
        raise SystemExit(f"protoc failed with status {status}")


class BuildPy(build_py):
    def run(self) -> None:
        generate_protos()
        super().run()


class BuildExt(build_ext):
    """Compiles on all cores, and only what has changed since the last build."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        generate_protos()
        FLAGS.parent.mkdir(exist_ok=True)
        self.same_flags = FLAGS.is_file() and FLAGS.read_text() == repr(COMPILE)
        FLAGS.write_text(repr(COMPILE))
        super().run()

    def build_extension(self, ext: Extension) -> None:
        # NOTE: an editable install builds in a new folder each time; what stands
        # beside the sources already is as good.
        target = Path(self.get_ext_fullpath(ext.name))
        built = ROOT / "cython_ext" / target.name
        sources = [ROOT / source for source in ext.sources]
        if (
            self.same_flags
            and built.is_file()
            and built.stat().st_mtime > max(path.stat().st_mtime for path in sources)
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target != built:
                shutil.copy2(built, target)
            return
        super().build_extension(ext)


setup(
    cmdclass={"build_py": BuildPy, "build_ext": BuildExt},
    ext_modules=cythonize(
        extensions(),
        nthreads=os.cpu_count() or 1,
        annotate=os.environ.get("PROCSERVER_ANNOTATE") == "1",
        compiler_directives={"language_level": 3, "embedsignature": True},
    ),
)
