"""Builds the C extension; everything else is in pyproject.toml.

LINEAS_WERROR=1    warnings are errors (development and CI; a user's newer compiler may know newer warnings)
LINEAS_SANITIZE=1  AddressSanitizer and UndefinedBehaviorSanitizer (see docs/development.md)
LINEAS_OPENMP=0    a serial build, also made wherever the compiler has no OpenMP
LINEAS_OPTIMIZE=1  a third of the compiler's time, 0 a tenth and fewer warnings, for what need not be fast
"""

import glob
import os
import sysconfig
import tempfile

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

# No errno from sqrt, so that it is an instruction and loops over it become vectors; no result changes.
GNU = ["-std=c11", "-O3", "-fno-math-errno", "-fvisibility=hidden"]
GNU += ["-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion"]
SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
# One binary for every Python from 3.10 on; a free-threaded one has no limited API and gets its own.
LIMITED = not sysconfig.get_config_var("Py_GIL_DISABLED")


class BuildExt(build_ext):
    """Adds what the compiler at hand understands."""

    def build_extensions(self):
        msvc = self.compiler.compiler_type == "msvc"
        compile_args = ["/std:c11", "/O2"] if msvc else list(GNU)
        link_args = [] if msvc else ["-lm"]
        if os.environ.get("LINEAS_WERROR") == "1":
            compile_args.append("/WX" if msvc else "-Werror")
        if os.environ.get("LINEAS_SANITIZE") == "1":
            compile_args += SANITIZE
            link_args += SANITIZE[:2]
        if not msvc and (level := os.environ.get("LINEAS_OPTIMIZE")):
            compile_args.append(f"-O{level}")  # the last one counts
        openmp = "/openmp" if msvc else "-fopenmp"
        if os.environ.get("LINEAS_OPENMP") != "0" and self.links(openmp):
            compile_args.append(openmp)
            link_args += [] if msvc else [openmp]
        else:
            print("lineas: building without OpenMP; kernels will use one thread")
        for extension in self.extensions:
            extension.extra_compile_args += compile_args
            extension.extra_link_args += link_args
        super().build_extensions()

    def links(self, flag):
        """Whether a small OpenMP program compiles and links with this flag."""
        with tempfile.TemporaryDirectory() as folder:
            source = os.path.join(folder, "probe.c")
            with open(source, "w") as file:
                file.write("#include <omp.h>\nint main(void) { return omp_get_max_threads() < 1; }\n")
            try:
                objects = self.compiler.compile([source], output_dir=folder, extra_postargs=[flag])
                self.compiler.link_executable(objects, "probe", output_dir=folder, extra_postargs=[flag])
            except (CompileError, LinkError):
                return False
        return True


setup(
    ext_modules=[
        Extension(
            "lineas.core._core",
            sources=sorted(glob.glob("csrc/kernels/*.c") + glob.glob("csrc/binding/*.c")),
            depends=sorted(glob.glob("csrc/*/*.h") + glob.glob("csrc/kernels/*.inc")),
            include_dirs=["csrc/kernels", numpy.get_include()],
            define_macros=[("Py_LIMITED_API", "0x030a0000")] if LIMITED else [],
            py_limited_api=LIMITED,
        )
    ],
    cmdclass={"build_ext": BuildExt},
    options={"bdist_wheel": {"py_limited_api": "cp310"}} if LIMITED else {},
)
