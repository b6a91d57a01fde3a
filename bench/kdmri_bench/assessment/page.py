"""The page of an assessment: one HTML document that loads nothing, and that prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from kdmri_bench.assessment.sections import Cell, Gallery, Measure, Picture, Section, Table
from kdmri_bench.results.figures import NOTHING
from kdmri_bench.results.statistics import EXPANDED

if TYPE_CHECKING:
    from kdmri_bench.assessment.assess import Assessment

__all__ = ["PAGE_SIZE", "build", "larger"]

PAGE_SIZE: Final = 1_000_000
"""Bytes that a page has at most where nothing else is asked for: mail and archives take it."""

_FIRST: Final = "verdict"  # what the page begins with, though it is found last


def build(assessment: Assessment) -> str:
    """Return an assessment as one HTML document.

    It holds its style, its script and its pictures (data URIs); opening it asks no server for
    anything. It follows the reader's choice of light or dark, and is printed in light colours.

    Pictures are taken as far as `Assessment.page_size` allows, the first of each gallery before the
    second of any; galleries say how many are left out. Figures are never left out, so that a page
    of very many networks may be larger; it says so.
    """
    every = sorted(assessment.sections, key=lambda section: section.name != _FIRST)
    bare = [replace(section, galleries=()) for section in every]
    room = assessment.page_size - len(_page(assessment, bare).encode())
    if room >= 0:
        return _page(assessment, _fitting(every, room, assessment.page_size))
    notes = [*assessment.notes, larger(assessment.page_size)]
    return _page(replace(assessment, notes=notes), _fitting(every, room, None))


def larger(limit: int) -> str:
    """Say that a page is larger than the bytes that it was to have, and why."""
    return (
        f"The page is larger than the {limit:,} byte(s) that --page-size allows: figures are never"
        " left out, and pictures are."
    )


_SAID: Final = 400  # bytes around the pictures of a gallery, with what it says of those left out


def _fitting(sections: Sequence[Section], room: int, limit: int | None) -> list[Section]:
    """Return sections with as many pictures as there is room for, in bytes.

    Args:
        sections: With all their pictures.
        room: For pictures; below zero there is none.
        limit: What the page stays below; None where it does not.
    """
    galleries = [gallery for section in sections for gallery in section.galleries]
    taken = [0] * len(galleries)
    open_ones = set(range(len(galleries)))
    for turn in range(max((len(gallery.pictures) for gallery in galleries), default=0)):
        for n, gallery in enumerate(galleries):
            if n not in open_ones or turn >= len(gallery.pictures):
                continue
            size = len(_picture(gallery.pictures[turn]).encode())
            size += 0 if turn else _SAID + len(gallery.title) + len(gallery.note)
            if size > room:
                open_ones.discard(n)
                continue
            room -= size
            taken[n] = turn + 1
    counts = iter(taken)
    return [
        replace(
            section,
            galleries=tuple(_cut(gallery, next(counts), limit) for gallery in section.galleries),
        )
        for section in sections
    ]


def _cut(gallery: Gallery, count: int, limit: int | None) -> Gallery:
    """Keep the first pictures of a gallery, and say so where there are more."""
    every = len(gallery.pictures)
    if count == every:
        return gallery
    why = "" if limit is None else f", so that the page stays below {limit / 1e6:g} MB"
    said = f"{every - count} of {every} pictures are left out{why} (--page-size)."
    return replace(
        gallery, pictures=gallery.pictures[:count], note=f"{gallery.note} {said}".strip()
    )


def _page(assessment: Assessment, sections: Sequence[Section]) -> str:
    title = _title(assessment)
    names = {str(network["key"]): str(network["key"]) for network in assessment.networks}
    body = "".join(
        [
            _header(assessment, title),
            _contents(sections),
            "<main>",
            *(_section(section, names) for section in sections if section.name == _FIRST),
            _networks(assessment),
            *(_section(section, names) for section in sections if section.name != _FIRST),
            _margins(assessment),
            _method(assessment),
            "</main>",
            _footer(assessment),
        ]
    )
    style = _asset("reporting.page", "style.css") + _asset("assessment", "assessment.css")
    script = _asset("reporting.page", "sort.js") + _asset("assessment", "zoom.js")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(title)}</title><link rel="icon" href="data:,">'
        f"<style>{style}</style></head>\n<body>"
        f'<a class="skip" href="#content">Skip to the figures</a>{body}'
        '<dialog id="zoom" aria-label="Enlarged picture"><form method="dialog"><button>Close'
        '</button></form><div class="held-picture" tabindex="0" role="region"'
        ' aria-label="Picture, scrollable"></div><p></p></dialog>'
        f"<script>{script}</script></body></html>\n"
    )


def _asset(package: str, name: str) -> str:
    return files(f"kdmri_bench.{package}").joinpath(name).read_text(encoding="utf-8")


def _title(assessment: Assessment) -> str:
    date = str(assessment.provenance.get("time_utc", ""))[:10]
    return f"Assessment of compressed networks, {assessment.mask.get('name', 'mask')}, {date}"


def _header(assessment: Assessment, title: str) -> str:
    subjects = sorted({str(volume["subject"]) for volume in assessment.volumes})
    slices = sum(int(volume["slices"]) for volume in assessment.volumes)
    lead = (
        f"{len(assessment.volumes)} volume(s) of {len(subjects)} subject(s), {slices} slices,"
        f" matrix {assessment.matrix}, mask {assessment.mask['name']}:"
        f" {float(assessment.mask['nominal_acceleration']):.2f}x nominal,"
        f" {float(assessment.mask['effective_acceleration']):.2f}x effective."
    )
    notices = [
        f"{volume['name']} was seen in training by {', '.join(volume['seen_in_training'])}: figures"
        " on it say nothing about new patients."
        for volume in assessment.volumes
        if volume["seen_in_training"]
    ]
    notices += assessment.notes
    if len(subjects) < 2:
        notices.append("There is one subject: no interval can be given, and no verdict.")
    notices += [f"{one['key']} was not assessed: {one['reason']}" for one in assessment.missing]
    marks = "".join(f'<p class="notice">{escape(line)}</p>' for line in notices)
    return f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>{marks}</header>'


def _contents(sections: Sequence[Section]) -> str:
    links = "".join(
        f'<li><a href="#{escape(section.name)}">{escape(section.title)}</a>'
        f"{' (not measured)' if section.reason else ''}</li>"
        for section in sections
    )
    return f'<nav aria-label="Contents" id="content"><ul>{links}</ul></nav>'


def _section(section: Section, names: Mapping[str, str]) -> str:
    head = f'<section id="{escape(section.name)}"><h2>{escape(section.title)}</h2>'
    measured = f"<p>{escape(section.measured)}</p>" if section.measured else ""
    if section.reason:
        why = escape(section.reason)
        return f'{head}{measured}<p class="notice">Not measured: {why}</p></section>'
    found = "".join(f"<li>{escape(line)}</li>" for line in section.findings)
    parts = [head, measured, f"<ul>{found}</ul>" if found else ""]
    parts.append(_measures(section.measures, section.title))
    parts += [
        f'<figure class="chart">{plot.svg}<figcaption>{escape(plot.caption)}</figcaption></figure>'
        for plot in section.plots
    ]
    parts += [_table(table) for table in section.tables]
    parts.append(_galleries(section.galleries))
    return "".join(parts) + "</section>"


def _measures(measures: Sequence[Measure], title: str) -> str:
    """Show figures of networks, then what candidates lose, as a table each."""
    own = [measure for measure in measures if not measure.against]
    changes = [measure for measure in measures if measure.against]
    reasons = dict.fromkeys(measure.reason for measure in measures if measure.reason)
    notes = "".join(f'<p class="faint">{escape(str(reason))}</p>' for reason in reasons)
    parts = []
    if own:
        parts.append(_pivot(own, f"{title}: networks", ("network",)))
    if changes:
        parts.append("<h3>Against each other</h3>")
        parts.append(_pivot(changes, f"{title}: differences", ("network", "against")))
    return "".join(parts) + notes


def _pivot(measures: Sequence[Measure], label: str, keys: tuple[str, ...]) -> str:
    columns = list(dict.fromkeys((m.name, m.title, m.unit) for m in measures))
    lines = list(dict.fromkeys(tuple(str(getattr(m, key)) for key in keys) for m in measures))
    at = {(tuple(str(getattr(m, key)) for key in keys), m.name): m for m in measures}
    heads = "".join(f'<th scope="col" class="text">{escape(key)}</th>' for key in keys)
    heads += "".join(
        f'<th scope="col">{escape(title)}<small>{escape(unit)}</small></th>'
        for _, title, unit in columns
    )
    body = ""
    for line in lines:
        body += f'<tr><th scope="row" data-value="{escape(line[0])}">{escape(line[0])}</th>'
        body += "".join(
            f'<td class="text" data-value="{escape(text)}">{escape(text)}</td>' for text in line[1:]
        )
        for name, _, _ in columns:
            body += _figure(at.get((line, name)))
        body += "</tr>"
    note = (
        "Mean, and its 95 % interval over subjects in brackets."
        if any(m.low is not None for m in measures)
        else ""
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
        f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
        f'</div><p class="faint">{note}</p>'
    )


def _figure(measure: Measure | None) -> str:
    if measure is None or measure.value is None:
        why = "" if measure is None else f' title="{escape(str(measure.reason))}"'
        return f'<td data-value=""{why}>{NOTHING}</td>'
    text = interval_text(measure)
    return f'<td data-value="{measure.value:.6g}">{escape(text)}</td>'


def interval_text(measure: Measure) -> str:
    """Return a figure as it is shown: its value, and its interval in brackets."""
    if measure.value is None:
        return NOTHING
    sign = "+" if measure.against else ""
    digits = measure.digits
    text = f"{measure.value:{sign}.{digits}f}"
    if measure.low is None or measure.high is None:
        return text
    return f"{text} [{measure.low:{sign}.{digits}f}, {measure.high:{sign}.{digits}f}]"


def _table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col"{_kind(table, n)}>{escape(name)}</th>' for n, name in enumerate(table.head)
    )
    body = ""
    for row in table.rows:
        first, *rest = row
        body += f'<tr><th scope="row" data-value="{_raw(first)}">{_shown(first, table)}</th>'
        body += "".join(
            f'<td{_kind(table, n)} data-value="{_raw(cell)}">{_word(_shown(cell, table))}</td>'
            for n, cell in enumerate(rest, 1)
        )
        body += "</tr>"
    note = f'<p class="faint">{escape(table.note)}</p>' if table.note else ""
    return (
        f"<h3>{escape(table.title)}</h3>{note}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">'
        f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>'
        "</div>"
    )


_WORDS: Final = {"non-inferior": "good", "inferior": "bad", "inconclusive": "open"}


def _word(shown: str) -> str:
    """Mark a word of the verdict, which its colour alone does not say."""
    return f'<b class="{_WORDS[shown]}">{shown}</b>' if shown in _WORDS else shown


def _kind(table: Table, column: int) -> str:
    """Return the class of a column: text stands left, and long text is wrapped."""
    cells = [row[column] for row in table.rows if row[column] is not None]
    texts = [cell for cell in cells if isinstance(cell, str)]
    if column == 0 or (cells and len(texts) == len(cells)):
        wide = max((len(text) for text in texts), default=0) > 40
        return ' class="text wrap"' if wide else ' class="text"'
    return ""


def _raw(cell: Cell) -> str:
    if cell is None:
        return ""
    return escape(cell) if isinstance(cell, str) else f"{cell:.6g}"


def _shown(cell: Cell, table: Table) -> str:
    if cell is None:
        return NOTHING
    if isinstance(cell, str):
        return escape(cell)
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.{table.digits}f}"


_LOOKING: Final = (
    '<p class="faint">Click a picture to enlarge it; rows scroll sideways. Which side is the'
    " patient's left is not marked. Not for diagnosis.</p>"
)


def _galleries(galleries: Sequence[Gallery]) -> str:
    """Show galleries; what they say in common is said once."""
    parts, said = [_LOOKING] if galleries else [], ""
    for gallery in galleries:
        blocks = "".join(_picture(picture) for picture in gallery.pictures)
        fresh = gallery.note if gallery.note != said else ""
        note = f'<p class="faint">{escape(fresh)}</p>' if fresh else ""
        said = gallery.note
        parts.append(f'<div class="gallery"><h3>{escape(gallery.title)}</h3>{note}{blocks}</div>')
    return "".join(parts)


def _picture(picture: Picture) -> str:
    tiles = "".join(
        f'<figure><button type="button" class="enlarge" aria-label="Enlarge: {escape(tile.alt)}">'
        f'<img src="{tile.uri}" alt="{escape(tile.alt)}" width="{tile.width}"'
        f' height="{tile.height}" loading="lazy"></button>'
        f"<figcaption>{escape(tile.caption)}</figcaption></figure>"
        for tile in picture.tiles
    )
    return (
        f'<div class="slices"><h4>{escape(picture.title)}</h4><div class="strip" tabindex="0"'
        f' role="region" aria-label="{escape(picture.title)}">{tiles}</div></div>'
    )


def _networks(assessment: Assessment) -> str:
    rows = [
        (
            str(network["key"]),
            str(network["role"]) + (", teacher" if _is_teacher(network, assessment) else ""),
            network.get("parameters"),
            _gmac(network),
            _ran(network),
            str(network.get("digest") or "").removeprefix("sha256:")[:12] or None,
        )
        for network in assessment.networks
    ]
    table = Table(
        title="What was assessed",
        head=("network", "role", "parameters", "GMAC a slice", "ran in", "digest"),
        rows=tuple(rows),
        note="Digest: the first 12 digits of the SHA-256 of the checkpoint, or of the bundle's"
        " manifest; the report in JSON has all of it.",
        digits=2,
    )
    return f'<section id="networks"><h2>Networks</h2>{_table(table)}</section>'


def _is_teacher(network: Mapping[str, Any], assessment: Assessment) -> bool:
    return bool(network["name"] == assessment.teacher and network["role"] != "teacher")


def _gmac(network: Mapping[str, Any]) -> float | None:
    macs = network.get("macs")
    return sum(macs.values()) / 1e9 if macs else None


def _ran(network: Mapping[str, Any]) -> str | None:
    from kdmri_edge.runtime.targets import as_users_write

    ran = network.get("ran")
    if not ran:
        return None
    precision = as_users_write(str(ran["precision_executed"]))
    return f"{ran['backend']} {ran['version']}, {precision}, {ran['device']}"


def _margins(assessment: Assessment) -> str:
    margins = assessment.margins
    return (
        '<section id="margins"><h2>Margins, as they were stated</h2><p>The file that the verdict'
        f" follows, {escape(str(margins['name']))}, SHA-256 <code>{margins['sha256']}</code>:</p>"
        f"<pre>{escape(str(margins['text']))}</pre></section>"
    )


def _method(assessment: Assessment) -> str:
    origin = assessment.provenance
    machine, git = origin["machine"], origin["git"]
    dirty = " with uncommitted changes" if git["dirty"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in origin["versions"].items())
    facts = {
        "Machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB,"
        f" {machine['os']}",
        "Revision": f"{git['revision'] or 'unknown'}{dirty}, kdmri-edge {origin['kdmri_edge']}",
        "Versions": f"Python {origin['python']}, {versions}",
        "Seed": str(origin["seed"]),
        "Time": str(origin["time_utc"]),
        "Volumes": ", ".join(
            f"{volume['name']} ({volume['slices']} slices from {volume['first_slice']})"
            for volume in assessment.volumes
        ),
    }
    rows = "".join(f"<dt>{key}</dt><dd>{escape(value)}</dd>" for key, value in facts.items())
    thanks = "".join(
        f'<p class="faint credit">Training data: {escape(text)}</p>'
        for text in assessment.attribution
    )
    return (
        '<section id="method"><h2>How it was measured</h2><ul><li>All sections read the same'
        " images; every image comes by the road that kdmri-edge run and serve take.</li>"
        "<li>Intervals: 95 %, of 10,000 resamples of subjects, then of their volumes (a paired"
        f" bootstrap for differences); {EXPANDED}.</li><li>Undersampling is retrospective; images"
        " of magnitudes give zero-phase k-space of one coil, which says nothing of measured"
        f" k-space.</li></ul><dl>{rows}</dl>{thanks}</section>"
    )


def _footer(assessment: Assessment) -> str:
    return (
        f"<footer><p>kdmri-edge {escape(str(assessment.provenance['kdmri_edge']))}. The same"
        " figures are in assessment.json. Not a medical device: this page reports measurements and"
        " is no clearance for clinical use.</p></footer>"
    )
