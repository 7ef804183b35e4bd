"""The HTML page of an audit: findings with crops, to accept or reject, in one file that works offline."""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

from ..own_data.overlay import COLUMNS, Overlay
from ..own_data.people import OwnData
from ..utils.files import json_sha256, write_text
from ..utils.images import Unreadable, for_display, read_image
from ..utils.processor import usable_cores
from .findings import KINDS, Finding
from .trust import HEADER, Trust

MOST_OF_KIND, MOST_PICTURES = 100, 3000  # limits by kind, since confidences of different kinds are not comparable
HEIGHT = 128  # largest side of a thumbnail in pixels


def write_page(path: Path, own: OwnData, findings: Sequence[Finding], notes: Sequence[str],
               trust: Trust | None, overlay: Overlay | None) -> None:
    """Write the page with the first `MOST_OF_KIND` findings of each kind and at most `MOST_PICTURES` crops.

    Args:
        path: file to write.
        own: the data.
        findings: findings, highest confidence first.
        notes: messages for the user.
        trust: accuracy of the models, None without models.
        overlay: existing corrections, which the page exports together with the new ones; None if there are none.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    count: Counter[str] = Counter()
    shown = []
    for one in findings:
        count[one.kind] += 1
        if count[one.kind] <= MOST_OF_KIND:
            shown.append(one)
    if len(findings) > len(shown):
        notes = [*notes, f"This page shows {len(shown)} of {len(findings)} findings, the {MOST_OF_KIND} with the "
                 "highest confidence of each kind; audit.csv contains all"]
    names = dict.fromkeys(name for one in shown for _, files in one.pictures for name in files)
    numbers = {name: number for number, name in enumerate(list(names)[:MOST_PICTURES])}
    row_of = {name: row for row, name in enumerate(own.files)}
    with ThreadPoolExecutor(usable_cores()) as threads:
        thumbnails = list(threads.map(lambda name: thumbnail(own.path(row_of[name])), numbers))
    earlier = [] if overlay is None else [[*row.target, row.attribute, row.value, row.was] for row in overlay.rows]
    records = [{"kind": one.kind, "attribute": one.attribute, "person": one.person, "label": one.label,
                "proposed": one.proposed, "confidence": one.confidence, "reason": one.reason,
                "pictures": [(title, [(name, numbers.get(name)) for name in files]) for title, files in one.pictures],
                "choices": [choice.text for choice in one.choices],
                "rows": json.dumps([choice.rows for choice in one.choices]),
                "key": json_sha256([one.kind, one.person, one.attribute, one.label, one.files])[:16]} for one in shown]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True,
                              lstrip_blocks=True, undefined=StrictUndefined)
    write_text(str(path), environment.get_template("page.html.j2").render(
        data=own.source, notes=notes, trust=trust, header=HEADER, findings=records, kind_texts=KINDS,
        pictures=thumbnails, earlier=earlier,
        columns=list(COLUMNS), digest=json_sha256([record["key"] for record in records])[:16],
        kinds=sorted(Counter(one.kind for one in shown).items()),
        attributes=sorted(Counter(one.attribute for one in shown).items())))


def thumbnail(path: str) -> str:
    """Return a small JPEG of an image as a data URL; "" if it cannot be read."""
    try:
        image = for_display(read_image(path))
    except Unreadable:
        return ""
    image.thumbnail((HEIGHT, HEIGHT))
    out = BytesIO()
    image.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
