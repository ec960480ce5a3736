"""A hook of MkDocs (mkdocs.yml): README.md is the site's first page, and the files it links to come along."""

import re
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config) -> Files:
    """README.md stands above docs/, so its links lose that folder. CHANGELOG.md becomes a page; others are copied."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    for target in sorted(set(re.findall(r"\]\(([^)#:\s]+)\)", text))):
        if (ROOT / target).is_file():
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    return files
