"""The page of an audit: findings with crops, to accept or reject, in one file that works without a network."""

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

MOST_OF_KIND, MOST_PICTURES = 100, 3000  # confidences of different kinds do not compare
HEIGHT = 128  # of a thumbnail, pixels


def write_page(path: Path, own: OwnData, findings: Sequence[Finding], notes: Sequence[str],
               trust: Trust | None, overlay: Overlay | None) -> None:
    """Write the page of the first `MOST_OF_KIND` findings of each kind, with at most `MOST_PICTURES` crops.

    Args:
        findings: the surest first.   trust: what the models know, None without models.
        overlay: the one that is there; its rows are exported as well.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    count: Counter[str] = Counter()
    shown = []
    for one in findings:
        count[one.kind] += 1
        if count[one.kind] <= MOST_OF_KIND:
            shown.append(one)
    if len(findings) > len(shown):
        notes = [*notes, f"The surest {MOST_OF_KIND} of each kind, {len(shown)} of {len(findings)} findings; audit.csv "
                 "has all"]
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
    """A crop in small as a data address; "" where it cannot be read."""
    try:
        image = for_display(read_image(path))
    except Unreadable:
        return ""
    image.thumbnail((HEIGHT, HEIGHT))
    out = BytesIO()
    image.save(out, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"
