"""The kernels' source: pure C without allocation, output or state."""

import re
import shutil
import subprocess

import pytest
from conftest import ROOT

CSRC = ROOT / "csrc"
SOURCES = sorted((CSRC / "kernels").iterdir())
CODE = {path.name: re.sub(r'/\*.*?\*/|//[^\n]*|"[^"\n]*"', " ", path.read_text(), flags=re.DOTALL) for path in SOURCES}


@pytest.mark.parametrize("name", CODE)
def test_kernels_neither_allocate_nor_print_nor_know_python(name):
    words = set(re.findall(r"\w+", CODE[name]))
    assert not words & {"malloc", "calloc", "realloc", "free", "alloca", "aligned_alloc", "PyMem_Malloc", "PyObject"}
    assert not words & {"printf", "fprintf", "puts", "putchar", "perror", "stderr", "stdout"}
    assert not words & {"abort", "exit", "assert", "errno", "rand", "srand", "getenv", "omp_set_num_threads"}


@pytest.mark.parametrize("name", CODE)
def test_static_in_kernels_is_only_for_functions_and_constants(name):
    for line in CODE[name].splitlines():
        if re.search(r"\b(static|_Thread_local)\b", line) and not line.startswith("#define LNS_"):
            assert re.search(r"\bstatic const\b", line) or ("(" in line and "=" not in line.split("(")[0]), line


@pytest.mark.process
@pytest.mark.skipif(not (shutil.which("cc") and shutil.which("size")), reason="needs a C compiler and binutils")
@pytest.mark.parametrize("path", [path for path in SOURCES if path.suffix == ".c"], ids=lambda path: path.name)
def test_kernels_keep_no_mutable_state(path, tmp_path):
    """No byte of initialised or zeroed data in the object file."""
    out = tmp_path / "kernel.o"
    subprocess.run(["cc", "-std=c11", "-c", "-o", out, path], check=True, timeout=60)
    sizes = subprocess.run(["size", out], check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()[1]
    assert sizes.split()[1:3] == ["0", "0"], sizes


def test_parallel_loops_declare_their_index_before_the_loop():
    """MSVC's OpenMP takes no declaration there."""
    for name, code in CODE.items():
        assert not re.search(r"LNS_PARALLEL_FOR\(\w+\)[\s\\]*for \(ptrdiff_t", code), name


def test_only_the_port_header_depends_on_the_compiler():
    for name, code in CODE.items():
        if name != "lns_port.h":
            guards = re.findall(r"#\s*(?:if|ifdef|ifndef|elif)\b.*", code)
            assert guards in ([], [f"#ifndef {name.upper().replace('.', '_')}"]), name
