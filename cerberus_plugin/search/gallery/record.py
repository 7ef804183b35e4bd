"""The file index.json of an index: layout of the rows, and attribute tables and calibration of the model."""

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
OLDER = 2  # older format that can be read; it has no checksums of files, the next update adds them


@dataclass(frozen=True)
class Record:
    """The contents of index.json as plain values, except their checksum.

    Attributes:
        id: of the index; it stays the same if the folder is moved.
        fingerprint: of the model that computed the embeddings.
        images: the image folder.
        name_pattern: for file names, see `Naming`; "" for the names of Market-1501 and DukeMTMC-reID.
        dim, groups, metric, values: see `Shape`.
        dtype: of the stored rows.
        vocabulary, lasting_groups, verification: of the model, see `Encoder`.
        follow_links: whether links to folders are followed.
        format: of the index folder.
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
        """Create the record of a new index.

        Args:
            encoder: model of the index.
            images: image folder.
            pattern: for file names.
            dtype: of the stored rows. If None, float16, or float32 for a model with Euclidean distance, whose
                embeddings may be too large for float16.
        """
        shape = Shape.of(encoder.groups, encoder.dim, encoder.metric, encoder.vocabulary)
        dtype = dtype or ("float32" if shape.metric == "euclidean" else "float16")
        return cls(uuid.uuid4().hex[:12], encoder.fingerprint, str(images), pattern, shape.dim, list(shape.groups),
                   shape.metric, dtype, **_known_by(encoder), values=shape.values)

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the record of an index folder.

        Raises:
            FileNotFoundError: if there is no index.
            Damaged: if the file is truncated or modified.
            ValueError: if it has another format.
        """
        path = folder / RECORD
        if not path.is_file():
            raise FileNotFoundError(f"{path}: not found; give the folder of an index, or build one")
        try:
            values = json.loads(path.read_bytes())
            made_by, checksum = values.get("format"), values.pop("checksum", None)
        except (ValueError, AttributeError, RecursionError) as error:
            raise Damaged(path, f"is truncated or modified ({error})", BUILD_AGAIN) from error
        if made_by not in (INDEX_FORMAT, OLDER):
            raise ValueError(f"{path}: has format {made_by}, this version supports {OLDER} and {INDEX_FORMAT}; build "
                             "the index again")
        if made_by != OLDER and checksum != json_sha256(values):
            raise Damaged(path, "was modified", BUILD_AGAIN)
        values = {"follow_links": False, "values": 0} | values
        if set(values) != {field.name for field in fields(cls)}:
            raise Damaged(path, "was modified", BUILD_AGAIN)
        return cls(**values)

    def write(self, folder: Path) -> None:
        """Write the record to an index folder, with its checksum."""
        values = asdict(self)
        write_json(folder / RECORD, {**values, "checksum": json_sha256(values)})

    def knowing(self, encoder: Encoder) -> Record:
        """Return a copy with the current attribute tables and calibration of the model."""
        return replace(self, format=INDEX_FORMAT, **_known_by(encoder))

    @property
    def shape(self) -> Shape:
        """The layout of the rows."""
        return Shape(tuple(self.groups), self.dim, self.metric, self.values)


def state(folder: Path) -> tuple[int, int, int] | None:
    """Return inode, modification time and size of index.json, to notice changes; None if it is missing."""
    try:
        found = (folder / RECORD).stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _known_by(encoder: Encoder) -> dict:
    known = {"vocabulary": encoder.vocabulary.to_dict() if encoder.vocabulary else None,
             "lasting_groups": list(encoder.lasting_groups),
             "verification": encoder.verification.to_dict() if encoder.verification else None}
    return json.loads(json.dumps(known))  # with the types that are read again, to compare them
