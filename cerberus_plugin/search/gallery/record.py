"""index.json: what the rows of an index are made of, and what its model knows."""

from __future__ import annotations

import json
import uuid
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...utils.files import json_sha256, write_json
from .parts import BUILD_AGAIN, Damaged
from .query import Shape

if TYPE_CHECKING:
    from ..portable.encoder import Encoder

RECORD = "index.json"
INDEX_FORMAT = 3
OLDER = 2  # format that is read too: without checksums of files, which the next update adds


@dataclass(frozen=True)
class Record:
    """The file as it stands, in plain values; a checksum of them stands there too.

    Attributes:
        id: that of the index, whatever folder it lies in.   fingerprint: of the model that has embedded the pictures.
        images: their folder.   name_pattern: "" for the names of known data sets, see `Naming`.
        follow_links: whether links to folders are followed.
        dim, groups, metric, values: `Shape`.   dtype: what rows are kept as.
        vocabulary, lasting_groups, verification: what the model knows beside that, see `Encoder`.
        format: that of the index folder.
    """

    id: str
    fingerprint: str
    images: str
    name_pattern: str
    dim: int
    groups: list[str]
    metric: str
    dtype: str
    vocabulary: dict | None
    lasting_groups: list[str]
    verification: dict | None
    values: int = 0
    follow_links: bool = False
    format: int = INDEX_FORMAT

    @classmethod
    def new(cls, encoder: Encoder, images: Path, pattern: str, dtype: str | None) -> Record:
        """That of an index which is begun; values that have no unit length may not fit into the half of 32 bits."""
        shape = Shape.of(encoder.groups, encoder.dim, encoder.metric, encoder.vocabulary)
        dtype = dtype or ("float32" if shape.metric == "euclidean" else "float16")
        return cls(uuid.uuid4().hex[:12], encoder.fingerprint, str(images), pattern, shape.dim, list(shape.groups),
                   shape.metric, dtype, **_known_by(encoder), values=shape.values)

    @classmethod
    def read(cls, folder: Path) -> Record:
        path = folder / RECORD
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; give the folder of an index, or build one")
        try:
            values = json.loads(path.read_bytes())
            made_by, checksum = values.get("format"), values.pop("checksum", None)
        except (ValueError, AttributeError, RecursionError) as error:
            raise Damaged(path, f"is cut short or altered ({error})", BUILD_AGAIN) from error
        if made_by not in (INDEX_FORMAT, OLDER):
            raise ValueError(f"{path}: its format is {made_by}, this program reads {OLDER} and {INDEX_FORMAT}; build "
                             "the index anew")
        if made_by != OLDER and checksum != json_sha256(values):
            raise Damaged(path, "is altered", BUILD_AGAIN)
        values = {"follow_links": False, "values": 0} | values
        if set(values) != {field.name for field in fields(cls)}:
            raise Damaged(path, "is altered", BUILD_AGAIN)
        return cls(**values)

    def write(self, folder: Path) -> None:
        values = asdict(self)
        write_json(folder / RECORD, {**values, "checksum": json_sha256(values)})

    def knowing(self, encoder: Encoder) -> Record:
        """The same with what the model knows now; it may have been calibrated meanwhile."""
        return replace(self, format=INDEX_FORMAT, **_known_by(encoder))

    @property
    def shape(self) -> Shape:
        return Shape(tuple(self.groups), self.dim, self.metric, self.values)


def state(folder: Path) -> tuple[int, int, int] | None:
    """What changes whenever the file is written; None where it is gone."""
    try:
        found = (folder / RECORD).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _known_by(encoder: Encoder) -> dict:
    known = {"vocabulary": encoder.vocabulary.to_dict() if encoder.vocabulary else None,
             "lasting_groups": list(encoder.lasting_groups),
             "verification": encoder.verification.to_dict() if encoder.verification else None}
    return json.loads(json.dumps(known))  # as it will be read, so that it can be compared
