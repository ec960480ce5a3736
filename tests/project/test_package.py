"""What is installed: public names, a small dependency list, and builds that need only a C compiler and NumPy."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

import lineas


def test_the_public_names_are_these():
    assert set(lineas.__all__) == {
        "Dial", "DryRun", "Gate", "Handle", "Path", "Site", "Steering", "Suggestion", "algebra", "attach", "attached",
        "calibrate", "callbacks", "checkpoint", "conflict", "detach", "directions", "dry_run", "evaluate", "evaluation",
        "experts", "find_sites", "fit", "fit_gate", "fit_jointly", "ot", "path", "penalties", "samples", "serving",
        "suggest_sites", "transport",
    }  # fmt: skip
    assert all(hasattr(lineas, name) for name in lineas.__all__)
    assert lineas.__version__[0].isdigit()


def test_the_tests_run_on_the_build_that_was_meant():
    """`make sanitize` and `make serial` say which; without this a stale extension could pass for them."""
    from lineas.core import _core

    expected = os.environ.get("LINEAS_EXPECT_BUILD")
    if expected:
        assert Path(_core.__file__).is_relative_to(ROOT / expected)
        assert ("serial" not in expected) or not _core.HAS_OPENMP


@pytest.mark.process
def test_importing_lineas_does_not_import_transformers_or_matplotlib():
    code = "import sys, lineas; print([n for n in ('transformers', 'matplotlib', 'diffusers') if n in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_only_five_packages_are_needed_at_run_time():
    text = (ROOT / "pyproject.toml").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("dependencies"))
    assert sorted(part.split(">=")[0].strip(' "') for part in line.split("[")[1].strip("]").split(",")) == [
        "huggingface-hub", "numpy", "safetensors", "torch", "tqdm",
    ]  # fmt: skip


@pytest.mark.process
def test_the_extension_exports_nothing_but_its_entry():
    from lineas.core import _core

    names = subprocess.run(["nm", "-D", "--defined-only", _core.__file__], capture_output=True, text=True)
    if names.returncode:
        pytest.skip("no nm here")
    exported = {line.split()[-1] for line in names.stdout.splitlines()}
    assert {name for name in exported if name.startswith(("lns", "py_", "PyInit"))} == {"PyInit__core"}


def test_samples_are_real_disjoint_and_seeded():
    negative, positive = lineas.samples.movie_reviews(32, seed=1)
    assert len(set(negative)) == len(set(positive)) == 32
    assert not set(negative) & set(positive)
    assert lineas.samples.movie_reviews(32, seed=1) == (negative, positive)
    assert lineas.samples.movie_reviews(32, seed=2) != (negative, positive)
    assert len(lineas.samples.neutral_sentences(200)) == 200
    with pytest.raises(ValueError, match="count: expected 1 to 160, got 161"):
        lineas.samples.movie_reviews(161)
    with pytest.raises(ValueError, match="count: expected 1 to 200, got 0"):
        lineas.samples.neutral_sentences(0)


def test_one_binary_serves_every_python_with_a_gil():
    from lineas.core import _core

    free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    expected = sysconfig.get_config_var("EXT_SUFFIX") if free_threaded else (".abi3.so", ".pyd")
    assert Path(_core.__file__).name.removeprefix("_core") in expected, "an older build in its place? make clean"


@pytest.mark.process
@pytest.mark.slow
def test_sdist_builds_and_installs_with_only_a_compiler_and_numpy(tmp_path):
    """sdist -> wheel in an isolated build environment -> an import that needs nothing but NumPy."""
    quick = os.environ | {"LINEAS_OPTIMIZE": "0"}
    build = [sys.executable, "-m", "build", "--outdir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True, env=quick)
    (sdist,), (wheel,) = tmp_path.glob("*.tar.gz"), tmp_path.glob("*.whl")
    with tarfile.open(sdist) as archive:
        inside = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for needed in (
        "csrc/kernels/lns_port.h",
        "csrc/kernels/lns_sort.inc",
        "csrc/binding/py_checks.h",
        "tests/conftest.py",
        "LICENSE",
        "CITATION.cff",
        "README.md",
    ):
        assert needed in inside
    packed = zipfile.ZipFile(wheel).namelist()
    for needed in ("lineas/core/_core.pyi", "lineas/py.typed", "lineas/samples/movie_reviews.csv"):
        assert needed in packed
    assert {"lineas_cli/app.py", "lineas_app/page.py"} <= set(packed)
    assert any("LICENSE.movie_reviews_and_editorials" in name for name in packed)
    assert not any(name.startswith(("tests", "csrc")) for name in packed)
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel]
    subprocess.run(pip, check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    told = subprocess.check_output([target / "bin" / "lineas", "--version"], text=True, cwd=tmp_path, env=environment)
    assert told.split()[0] == "lineas"
    (core,) = (path for path in target.glob("lineas/core/_core*") if path.suffix != ".pyi")
    code = (
        "import importlib.util as tool, sys, numpy as np\n"
        f"spec = tool.spec_from_file_location('lineas._core', {str(core)!r})\n"
        "core = tool.module_from_spec(spec)\n"
        "spec.loader.exec_module(core)\n"
        "print(core.sort_columns(np.array([[2.0], [1.0]]), 1)[0].ravel(), 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert ran.stdout.strip() == "[1. 2.] False"


def test_formal_and_casual_sentences_are_drawn_by_seed():
    formal, casual = lineas.samples.formal_and_casual(20, seed=1)
    assert len(set(formal)) == len(set(casual)) == 20
    assert lineas.samples.formal_and_casual(20, seed=1) == (formal, casual)
    assert lineas.samples.formal_and_casual(20, seed=2) != (formal, casual)
    assert not set(formal) & set(casual)
    with pytest.raises(ValueError, match="count: expected 1 to 64, got 65"):
        lineas.samples.formal_and_casual(65)
