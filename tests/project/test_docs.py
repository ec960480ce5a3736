"""The code in README.md and docs/ runs as written, and their links lead somewhere."""

import ast
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from conftest import DATA, HUB_NAME, ROOT, small_model, small_tokenizer

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
        (transformers.AutoModelForCausalLM, lambda: small_model(len(tokenizer))),
    ):
        real = auto.from_pretrained
        monkeypatch.setattr(
            auto, "from_pretrained",
            lambda name, *args, real=real, load=load, **kw: load() if name == HUB_NAME else real(name, *args, **kw),
        )  # fmt: skip
    monkeypatch.setenv("MPLBACKEND", "Agg")
    shutil.copytree(DATA, tmp_path / "tests" / "data")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are too small for more
    with torch.random.fork_rng():
        yield tmp_path
    torch.set_num_threads(threads)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name)
def test_python_blocks_run_in_order(page, checkout):
    namespace = {"__name__": page.stem}
    for block in python_blocks(page):
        code = "\n" * (block.line - 1) + block.code  # so that a traceback names the page's own line
        exec(compile(code, str(page), "exec"), namespace)


def test_the_pages_for_users_have_python_in_them():
    """Else the test above could pass by running nothing."""
    assert {page.name for page in PAGES if python_blocks(page)} >= {"README.md", "quickstart.md", "published-recipe.md"}


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
    """The code spans of the paragraphs that start with "Message:" or tell of one."""
    lead = re.findall(r"^(?:Message:|Merge has the message) (`[^`]+`(?: and `[^`]+`)*)", split(page)[1], re.MULTILINE)
    return [" ".join(text.split()) for spans in lead for text in re.findall(r"`([^`]+)`", spans)]


def test_every_message_that_troubleshooting_explains_is_one_of_ours():
    said = messages(ROOT / "docs" / "troubleshooting.md")
    assert len(said) > 30
    sources = "\n".join(literals(Path(lineas.__file__).parent))
    unknown = []
    for message in said:
        pieces = [piece.strip(" ,.:;()") for piece in message.split("...")]
        assert max(map(len, pieces)) > 12, f"{message!r} could be anybody's"
        unknown += [(message, piece) for piece in pieces if piece not in sources]
    assert not unknown
