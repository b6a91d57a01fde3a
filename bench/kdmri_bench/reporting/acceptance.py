"""The result of an acceptance test as one HTML page to print and keep: no script, no request."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from kdmri_edge.utils.files import atomic_path

__all__ = ["acceptance_page", "write_acceptance"]

_STYLE: Final = """
.verdict { font-size: 1.5rem; font-weight: 700; border-radius: 8px; padding: 12px 16px; }
.verdict.passed { background: #e3f4e8; color: #0b5a2a; }
.verdict.failed { background: #fbe4e2; color: #8c1d14; }
td.failed, td.passed { font-weight: 600; }
td.failed { color: #8c1d14; } td.passed { color: #0b5a2a; }
td.wrap { overflow-wrap: anywhere; }
footer { margin-top: 22px; }
.sign { display: grid; grid-template-columns: 1fr 1fr; gap: 42px; margin-top: 46px; }
.sign span { border-top: 1px solid var(--faint); padding-top: 4px; color: var(--faint); }
@media (prefers-color-scheme: dark) {
  .verdict.passed { background: #12351f; color: #9be3b4; }
  .verdict.failed { background: #401714; color: #ffb4ac; }
  td.failed { color: #ffb4ac; } td.passed { color: #9be3b4; }
}
@media print {
  @page { size: A4; margin: 14mm; }
  body { font-size: 11px; } section { padding: 0; margin: 10px 0; } header { padding-top: 0; }
  .verdict { border: 2px solid; print-color-adjust: exact; }
}
"""
_WORDS: Final = {
    "passed": "✓ passed", "failed": "✗ failed", "not checked": "- not checked",
    "measured": "measured",
}  # fmt: skip


def write_acceptance(found: Mapping[str, Any], file: Path) -> None:
    """Write the page.

    Args:
        found: What `kdmri_edge.runtime.verify` found.
        file: The page.

    Raises:
        OutputError: The place cannot be written to.
    """
    with atomic_path(file) as temporary:
        temporary.write_text(acceptance_page(found), encoding="utf-8")


def acceptance_page(found: Mapping[str, Any]) -> str:
    """Return the page as one HTML document that loads nothing.

    Args:
        found: What `kdmri_edge.runtime.verify` found: a result, or a refusal.
    """
    name = Path(found["bundle"]).name
    title = f"Acceptance of {name}, {found['time_utc'][:10]}"
    verdict = "passed" if found["passed"] else "failed"
    said = "Accepted: every check passed that was made." if found["passed"] else (
        "Not accepted: do not use this bundle."
    )  # fmt: skip
    lines = "".join(
        f'<tr><th scope="row">{escape(check["name"])}</th>'
        f'<td class="text {check["result"].replace(" ", "-")}">{_WORDS[check["result"]]}</td>'
        f'<td class="text wrap">{escape(check["text"])}</td></tr>'
        for check in found["checks"]
    )
    style = files("kdmri_bench.reporting.page").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{style}{_STYLE}</style></head>\n<body><header><h1>{escape(title)}</h1>"
        f'<p class="lead">{escape(_where(found))}</p></header><main>'
        f'<p class="verdict {verdict}">{said}</p>'
        '<section id="checks"><h2>Checks</h2><div class="scroll" tabindex="0" role="region"'
        ' aria-label="Checks"><table><thead><tr><th scope="col" class="text">check</th>'
        '<th scope="col" class="text">result</th><th scope="col" class="text">what was found</th>'
        f"</tr></thead><tbody>{lines}</tbody></table></div></section>"
        f'<section id="hashes"><h2>What this page is about</h2><dl>{_hashes(found)}</dl></section>'
        '<div class="sign"><span>Name, date</span><span>Signature</span></div></main>'
        f"<footer><p>kdmri-edge {escape(str(found['kdmri_edge']))}, <code>kdmri-edge verify</code>."
        " What was not checked is neither passed nor failed. It says that the network is the one"
        " that was exported, and not that it is a good one. Not a medical device.</p></footer>"
        "</body></html>\n"
    )


def _where(found: Mapping[str, Any]) -> str:
    machine = found["machine"]
    return (
        f"{machine['cpu']}, {machine['cores']} CPUs, {machine['memory_gib']} GiB,"
        f" {machine['os']}; {found['time_utc']}"
    )


def _hashes(found: Mapping[str, Any]) -> str:
    """List by hash what belongs together: bundle, manifest, signature, key, report."""
    signature, report = found.get("signature") or {}, found.get("report") or {}
    facts = {
        "Bundle": found["bundle"],
        "Digest of the manifest": found.get("digest"),
        "Manifest, as signed": signature.get("manifest"),
        "Key that signed": signature.get("key"),
        "Checkpoint, as signed": signature.get("checkpoint"),
        "Report": report.get("report") or signature.get("report"),
    }
    return "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(str(value))}</code></dd>"
        for name, value in facts.items()
        if value
    )
