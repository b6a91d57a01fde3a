"""Hook of MkDocs: what the site shows of files that lie outside docs/.

In the repository, pages name pictures, tutorials and source files by their paths, so that links
work where the Markdown itself is read. Here these become parts of the site:

- pictures under bench/results are copied;
- scripts under examples/ become tutorials, CHANGELOG.md, CONTRIBUTING.md and SECURITY.md pages;
- links to source files, which are not in the site, keep their text alone;
- `<!-- made:NAME -->` is replaced by a table of the code (`maintainer.code_tables.MADE`).
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from maintainer.code_tables import MADE

__all__ = ["on_files", "on_page_markdown", "places", "resolved", "tutorial"]

ROOT: Final = Path(__file__).resolve().parents[2]

_PAGES: Final = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
_LINK: Final = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<to>[^)#\s]+)(?P<at>#[^)]*)?\)")
_MADE: Final = re.compile(r"<!-- made:([\w.]+) -->")


def places(root: Path = ROOT) -> dict[str, str]:
    """Return what of the repository is part of the site: path -> place below docs/."""
    pictures = [
        path.relative_to(root).as_posix()
        for kind in ("png", "svg")
        for path in sorted((root / "bench" / "results").rglob(f"*.{kind}"))
    ]
    scripts = [path.name for path in sorted((root / "examples").glob("*.py"))]
    return {
        **_PAGES,
        **{path: path.removeprefix("bench/") for path in pictures},
        **{f"examples/{name}": f"tutorials/{Path(name).stem}.md" for name in scripts},
    }


def tutorial(script: Path) -> str:
    """Return a script in percent format as Markdown: its text, and its code in fences."""
    import jupytext

    name = script.relative_to(ROOT).as_posix()
    parts = []
    for cell in jupytext.read(script).cells:
        source = cell.source.strip()
        if source:
            parts.append(source if cell.cell_type == "markdown" else f"```python\n{source}\n```")
    parts.insert(1, f"This page is the script `{name}`. Run it with `python {name}`, or open it"
                    " as a notebook (Jupytext).")  # fmt: skip
    return "\n\n".join(parts) + "\n"


def resolved(text: str, source: str, page: str, known: dict[str, str]) -> str:
    """Return Markdown whose links lead to the site instead of the repository.

    Args:
        text: Markdown.
        source: Path of its file in the repository.
        page: Path of its page below docs/.
        known: What is part of the site, see `places`.
    """

    def link(match: re.Match[str]) -> str:
        to = match["to"]
        if ":" in to:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), to))
        if path.startswith("docs/"):
            place: str | None = path.removeprefix("docs/")
        else:
            place = known.get(path)
        if place is None:
            if not (ROOT / path).exists():
                return match[0]  # MkDocs says that it leads nowhere
            return match["text"]
        relative = posixpath.relpath(place, posixpath.dirname(page) or ".")
        return f"{match['picture']}[{match['text']}]({relative}{match['at'] or ''})"

    return _LINK.sub(link, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/."""
    known = places()
    for path, place in known.items():
        source = ROOT / path
        if not place.endswith(".md"):
            files.append(File.generated(config, place, abs_src_path=os.fspath(source)))
            continue
        script = source.suffix == ".py"
        text = tutorial(source) if script else source.read_text(encoding="utf-8")
        text = resolved(text, path, place, known)
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Resolve links, and make the tables that come from the code."""
    place = page.file.src_uri
    text = _MADE.sub(lambda match: MADE[match[1]](), markdown)
    return resolved(text, f"docs/{place}", place, places())
