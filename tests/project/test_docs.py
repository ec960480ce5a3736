"""The code in README.md and docs/ runs as written, and their links lead somewhere."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import DATA, HUB_NAME, ROOT, minding_model, small_tokenizer

import lineas

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES = {"python", "sh", "text", "c", "bibtex"}


class Fence(NamedTuple):
    language: str
    line: int  # of the first line of code, counted from 1
    code: str


def split(page: Path) -> tuple[list[Fence], str]:
    """A page's fenced blocks, and its prose without them."""
    fences, prose, block, language = [], [], None, ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            if block is None:
                block, language, start = [], line[3:].strip(), number + 1
            else:
                fences.append(Fence(language, start, "\n".join(block)))
                block = None
        else:
            (prose if block is None else block).append(line)
    assert block is None, f"{page.name}: the last fence is open"
    return fences, "\n".join(prose)


def python_blocks(page: Path) -> list[Fence]:
    return [fence for fence in split(page)[0] if fence.language == "python"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A working directory like a checkout's root, where the hub's model is a small random one."""
    import transformers

    tokenizer = small_tokenizer()
    for auto, load in (
        (transformers.AutoTokenizer, lambda: tokenizer),
        (transformers.AutoModelForCausalLM, lambda: minding_model(len(tokenizer))),
    ):
        real = auto.from_pretrained
        monkeypatch.setattr(
            auto, "from_pretrained",
            lambda name, *args, real=real, load=load, **kw: load() if name == HUB_NAME else real(name, *args, **kw),
        )  # fmt: skip
    monkeypatch.setenv("MPLBACKEND", "Agg")
    shutil.copytree(DATA, tmp_path / "tests" / "data")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "image_model").symlink_to(ROOT / "examples" / "image_model")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small for more
    with torch.random.fork_rng():
        yield tmp_path
    torch.set_num_threads(threads)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run_in_order(page, checkout):
    namespace = {"__name__": page.stem}
    for block in python_blocks(page):
        code = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's own line
        exec(compile(code, str(page), "exec"), namespace)


def test_the_pages_for_users_have_python_in_them():
    """Else the test above could pass by running nothing."""
    of_users = {"README", "quickstart", "guide", "evaluation", "experts", "merge", "methods", "published-recipe"}
    assert {page.stem for page in PAGES if python_blocks(page)} >= {*of_users, "troubleshooting", "extending"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_fences_say_their_language(page):
    """A block called `py`, or nothing, would never be run."""
    assert {fence.language for fence in split(page)[0]} <= LANGUAGES


def anchors(page: Path) -> set[str]:
    """What a `#fragment` may say: the headings as the usual renderers spell them."""
    headings = re.findall(r"^#+ +(.*)$", split(page)[1], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_and_pictures_exist(page):
    prose = split(page)[1]
    targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
    missing = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            missing.append(target)
    assert not missing


def literals(folder: Path) -> list[str]:
    """All strings of a package's code, the values in f-strings as NUL."""
    found = []
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def messages(page: Path) -> list[str]:
    """The first cells of the tables of messages, each a code span."""
    tables = re.findall(r"^\| message \|.*\n\|[-|]+\|\n((?:\|.*\n?)+)", split(page)[1], re.MULTILINE)
    return [re.fullmatch(r"\| `([^`]+)` \|.*", row).group(1) for table in tables for row in table.splitlines()]


def test_every_message_that_troubleshooting_explains_is_one_of_ours():
    said = messages(ROOT / "docs" / "troubleshooting.md")
    assert len(said) > 35
    sources = "\n".join(literals(Path(lineas.__file__).parent))
    unknown = []
    for message in said:
        pieces = [piece.strip(" ,.:;()") for piece in message.split("...")]
        assert max(map(len, pieces)) > 12, f"{message!r} could be anybody's"
        unknown += [(message, piece) for piece in pieces if piece not in sources]
    assert not unknown


def steps(page: Path, heading: str) -> list[tuple[str, str, str, str]]:
    """What a section tells its reader to write: (where, file, anchor, code) of each block with such words above it."""
    section = page.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    words = r"(?:([Nn]ew) file|At the (end) of|In) `([^`]+)`(?:, (above|below) `([^`]+)`)?:\n\n"
    found = re.findall(words + r"```(?:c|text)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    assert len(found) == len(re.findall(r"^```(?:c|text)$", section, re.MULTILINE)), "a block without a place"
    return [((new or end or side).lower(), file, anchor, code) for new, end, file, side, anchor, code in found]


def follow(page: Path, heading: str, root: Path) -> list[str]:
    """Do what a section says, in a copy of the project; the new files."""
    new = []
    for where, name, anchor, code in steps(page, heading):
        lines = [] if where == "new" else (root / name).read_text(encoding="utf-8").splitlines(keepends=True)
        at = len(lines)
        if where == "new":
            assert not (root / name).exists(), name
            new.append(name)
        elif where != "end":
            (line,) = (number for number, text in enumerate(lines) if text.startswith(anchor))
            at = line + (where == "below")
        (root / name).write_text("".join([*lines[:at], code, *lines[at:]]), encoding="utf-8")
    return new


def changed(folder: Path, before: Path) -> list[Path]:
    """Sources that are new there or not what they were; at least one."""
    sources = {path: before / path.relative_to(folder) for path in folder.rglob("*.c")}
    found = [path for path, old in sources.items() if not old.exists() or old.read_bytes() != path.read_bytes()]
    assert found
    return found


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_the_kernel_of_the_page_builds_and_passes_its_tests(tmp_path):
    """Word for word: the C program and the extension with warnings as errors, and the tests that the page promises.

    Of the extension only what the page adds or changes is optimised, which some warnings need: all of it takes long.
    """
    for name in ("csrc", "lineas", "lineas_cli", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    new = follow(ROOT / "docs" / "extending.md", "A kernel", tmp_path)
    environment = os.environ | {"LINEAS_WERROR": "1", "LINEAS_OPTIMIZE": "0"}
    environment |= dict.fromkeys(("PYTHONPATH", "LINEAS_EXPECT_BUILD"), str(tmp_path))

    def run(*command: str) -> str:
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    sources = [str(path) for folder in ("kernels", "test") for path in (tmp_path / "csrc" / folder).glob("*.c")]
    strict = ["-std=c11", "-Wall", "-Wextra", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror"]
    run("cc", *strict, "-Icsrc/kernels", "-o", "test_kernels", *sources, "-lm")
    assert "ok    lns_column_span_f32: as column by column\n" in run("./test_kernels")
    includes = [f"-I{folder}" for folder in ("csrc/kernels", sysconfig.get_path("include"), np.get_include())]
    for path in changed(tmp_path / "csrc", ROOT / "csrc"):
        run("cc", "-O1", "-fopenmp", *strict, *includes, "-c", "-o", str(tmp_path / "strict.o"), str(path))
    run(sys.executable, "setup.py", "-q", "build_ext", "--inplace")
    (tests,) = (name for name in new if name.startswith("tests/"))
    chosen = [tests, str(Path(tests).with_name("test_core_invariants.py")), "-k", "span"]
    passed = re.search(r"(\d+) passed", run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen))
    assert int(passed.group(1)) > 10 + 12, "its own, and the dozen for free"
