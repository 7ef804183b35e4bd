"""Tables of words: CSV, JSON lines and Parquet, read by pyarrow into coded columns.

Shapes: N rows, W distinct words of a column.
"""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..utils.files import decode_text

SUFFIXES = (".csv", ".jsonl", ".parquet")
MOST_COLUMNS = 500
KEYS = ("file_name", "person", "camera", "split", "outfit", "time")  # columns that are no attributes
EMPTY = -1  # code of an empty cell


@dataclass(frozen=True)
class Words:
    """A column of text.

    Attributes:
        codes: int32 (N,), the number of each row's word, `EMPTY` for an empty cell.
        words: W distinct words.
    """

    codes: np.ndarray
    words: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[str]) -> Words:
        """A column of these values; an empty text is an empty cell."""
        words = tuple(dict.fromkeys(filter(None, values)))
        number = {word: code for code, word in enumerate(words)} | {"": EMPTY}
        return cls(np.fromiter((number[value] for value in values), np.int32, len(values)), words)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> str:
        code = self.codes[row]
        return "" if code == EMPTY else self.words[code]

    @property
    def complete(self) -> bool:
        return not (self.codes == EMPTY).any()

    def counts(self) -> np.ndarray:
        """Rows of each word: int64 (W,)."""
        return np.bincount(self.codes[self.codes != EMPTY], minlength=len(self.words))

    def to_list(self) -> list[str]:
        words = (*self.words, "")  # EMPTY is the last
        return [words[code] for code in self.codes.tolist()]

    def renamed(self, names: Mapping[str, str]) -> Words:
        """The column with other words; those that become equal are one word, and "" is an empty cell."""
        new = [names.get(word, word) for word in self.words]
        words = tuple(dict.fromkeys(filter(None, new)))
        number = {word: code for code, word in enumerate(words)} | {"": EMPTY}
        codes = np.array([*(number[word] for word in new), EMPTY], np.int32)  # EMPTY is the last
        return Words(codes[self.codes], words)

    def in_use(self) -> Words:
        """The column without words that no row has."""
        used = self.counts() > 0
        if used.all():
            return self
        codes = np.append(np.where(used, used.cumsum() - 1, EMPTY), EMPTY).astype(np.int32)
        return Words(codes[self.codes], tuple(word for word, own in zip(self.words, used) if own))

    def rows(self, chosen: np.ndarray) -> Words:
        return Words(self.codes[chosen], self.words)


@dataclass(frozen=True)
class Table:
    """A file of words.

    Attributes:
        path: of the file.
        columns: by name; cells have no spaces around them.
        numbers: int64 (N,), the place of each row among the records of the file; rows without any word are left out.
        parts: the tables that this one was joined of, in order.
    """

    path: Path
    columns: dict[str, Words]
    numbers: np.ndarray = field(repr=False)
    parts: tuple[Table, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, row: int) -> str:
        """File and line of a row, for a message. The file is read once more, since few rows are ever asked for."""
        for part in self.parts:
            if row < len(part):
                return part.where(row)
            row -= len(part)
        number = int(self.numbers[row])
        if self.path.suffix.lower() == ".parquet":
            return f"{self.path}, row {number + 1}"
        text = decode_text(self.path, self.path.read_bytes())
        lines = _csv_lines(text) if self.path.suffix.lower() == ".csv" else (
            line for line, content in enumerate(text.split("\n"), start=1) if content.strip())
        return f"{self.path}, line {next(line for place, line in enumerate(lines) if place == number)}"


def read_table(path: str | Path, required: Sequence[str]) -> Table:
    """Read a table of words.

    CSV is in UTF-8, or in UTF-16 with its mark, with commas, semicolons or tabs between cells, as spreadsheets write
    it. Names of columns and cells lose spaces around them. In JSON lines and Parquet, numbers are read as they are
    written and true and false as yes and no.

    Args:
        required: names of columns that must be there; they are recognised in capitals as well.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: with file, line, and remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found. Expected a table with the columns {', '.join(required)}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: ends in '{suffix}', expected one of {', '.join(SUFFIXES)}. Save the table as CSV "
                         "UTF-8.")
    columns = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[suffix](path)
    _check_names(path, list(columns), required)
    filled = np.zeros(len(next(iter(columns.values()))), bool)
    for column in columns.values():
        filled |= column.codes != EMPTY
    if not filled.all():  # spreadsheets write empty lines as separators alone
        columns = {name: column.rows(filled) for name, column in columns.items()}
    if not filled.any():
        raise ValueError(f"{path}: has no rows below its first line. Write one row for each picture, person or outfit.")
    return Table(path, columns, np.flatnonzero(filled))


def joined(folder: Path, tables: Mapping[str, Table]) -> Table:
    """One table of those in folders of parts: names begin with the part, which is also the split where none is given.

    Args:
        folder: of these folders.   tables: by part.
    """
    parts = list(tables.values())
    columns = {}
    for name in dict.fromkeys(name for table in parts for name in (*table.columns, "split")):
        values: list[str] = []
        for part, table in tables.items():
            own = table.columns.get(name)
            if own is None:
                values += [part if name == "split" else ""] * len(table)
            elif name == "file_name":  # an absolute path stays one, to be refused
                values += [value if value[:1] in "/\\" or value[1:2] == ":" else f"{part}/{value}"
                           for value in own.to_list()]
            else:
                values += own.to_list()
        columns[name] = Words.of(values)
    return Table(folder, columns, np.concatenate([table.numbers for table in parts]), tuple(parts))


def _check_names(path: Path, names: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        raise ValueError(f"{path}: has no column '{missing[0]}'; its columns are {_listed(names)}. Rename the column "
                         f"that holds it; required are {', '.join(required)}.")
    folded = Counter(name.casefold() for name in names)
    twice = [name for name in names if folded[name.casefold()] > 1]
    if twice:
        raise ValueError(f"{path}: two columns are called '{twice[0]}', but for upper and lower case. Rename one.")


def _check_number(path: Path, count: int) -> None:
    if count > MOST_COLUMNS:
        raise ValueError(f"{path}: has {count} columns, expected at most {MOST_COLUMNS}. Each attribute is one column "
                         "with its value in words; take out what is none, such as features of images.")


def _tidied(name: str) -> str:
    """A column's name with single spaces; the names that the form gives a meaning in lower case."""
    name = " ".join(name.split())
    return name.casefold() if name.casefold() in KEYS else name


def _csv_header(path: Path, text: str) -> tuple[list[str], str]:
    """Names in the first line, and the separator."""
    # Excel writes semicolons where a comma is the decimal sign, and tabs into its "Unicode text".
    separator = max(",;\t", key=text.partition("\n")[0].count)
    try:
        names = next((line for line in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
                      if line), [])
    except csv.Error as error:
        raise ValueError(f"{path}, line 1: {error}. Check the quotes of the names of columns.") from error
    names = [_tidied(name) for name in names]
    _check_number(path, len(names))
    if len(names) < 2:
        raise ValueError(f"{path}, line 1: has one column, '{(names or [''])[0][:40]}'. Columns are separated by "
                         "commas, semicolons or tabs, and the first line names them.")
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(f"{path}, line 1: two columns are called '{twice[0]}'. Rename one.")
    return names, separator


def _csv_records(text: str) -> Iterator[tuple[int, list[str]]]:
    """The first line and the cells of each record below the header that is not blank."""
    separator = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    first, header = 1, True
    for cells in reader:
        if any(cell.strip() for cell in cells) or len(cells) > 1:
            if not header:
                yield first, cells
            header = False
        first = reader.line_num + 1


def _csv_lines(text: str) -> Iterator[int]:
    return (line for line, _ in _csv_records(text))


def _read_csv(path: Path) -> dict[str, Words]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    with path.open("rb") as file:  # before a file of any size is read
        first = file.readline(2**22)
    _check_number(path, 1 + max(map(first.count, (b",", b";", b"\t"))))
    text = decode_text(path, path.read_bytes())
    names, separator = _csv_header(path, text)
    places = [str(place) for place in range(len(names))]
    bad = []

    def refuse(row) -> str:
        if row.text.strip():
            bad.append(row)
        return "skip"

    try:
        table = arrow_csv.read_csv(
            io.BytesIO(text.encode()),
            # A block holds whole records: one that is longer than it is refused.
            read_options=arrow_csv.ReadOptions(column_names=places, skip_rows_after_names=1, block_size=2**24),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True,
                                                 invalid_row_handler=refuse),
            convert_options=arrow_csv.ConvertOptions(
                column_types={place: pa.dictionary(pa.int32(), pa.string()) for place in places},
                strings_can_be_null=False, null_values=[]))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}. Check the quotes; values need none unless they have a separator."
                         ) from error
    if bad:
        line, cells = next((line, cells) for line, cells in _csv_records(text) if len(cells) != len(names))
        raise ValueError(f"{path}, line {line}: has {len(cells)} cells, expected {len(names)} as in the first line. "
                         f"Quote a value that has a '{separator}' in it, and check the quotes before this line.")
    columns = {name or place: _words(table.column(place)) for place, name in zip(places, names)}
    _check_last(path, text, table, columns)
    for place, name in zip(places, names):
        if not name:
            if (columns.pop(place).codes != EMPTY).any():
                raise ValueError(f"{path}, line 1: column {int(place) + 1} has values but no name. Name it, or delete "
                                 "the column.")
    return columns


def _check_last(path: Path, text: str, table, columns: Mapping[str, Words]) -> None:
    """Refuse a quote that is never closed: pyarrow takes the rest of the file for one value."""
    if table.num_rows:
        last = table.column(table.num_columns - 1)[-1].as_py()
        if "\n" in last and text.endswith(last):
            line = 1 + text[:len(text) - len(last)].count("\n")
            raise ValueError(f"{path}, line {line}: a quote is opened and never closed. Close it, or delete it.")


def _read_jsonl(path: Path) -> dict[str, Words]:
    import pyarrow as pa
    from pyarrow import json as arrow_json

    text = decode_text(path, path.read_bytes())
    first = next(filter(None, map(str.strip, text.split("\n", 100)[:100])), "")
    try:
        record = json.loads(first)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}, line 1: no JSON ({error}). Expected one object a line, such as "
                         '{"file_name": "0001.jpg", "person": "7"}') from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}, line 1: holds {first[:40]}, expected one object a line, such as "
                         '{"file_name": "0001.jpg", "person": "7"}')
    _check_number(path, len(record))
    try:
        table = arrow_json.read_json(io.BytesIO(text.encode()),
                                     read_options=arrow_json.ReadOptions(block_size=2**24))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: {error}. Write one object a line, and each value of a column in the same form, best "
                         "as text.") from error
    return _columns_of(path, table)


def _read_parquet(path: Path) -> dict[str, Words]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        _check_number(path, len(file.schema_arrow.names))
        table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: is no Parquet file that can be read ({error}). Write it anew, or as CSV.") from error
    return _columns_of(path, table)


def _columns_of(path: Path, table) -> dict[str, Words]:
    """Columns of any type as words."""
    import pyarrow as pa
    from pyarrow import compute

    _check_number(path, table.num_columns)
    columns: dict[str, Words] = {}
    for name in table.column_names:
        column = table.column(name)
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        tidied = _tidied(name)
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise ValueError(f"{path}: column '{name}' holds {kind}, expected text. Leave it out, or write one column "
                             "for each of its parts.")
        if not tidied or tidied in columns:
            raise ValueError(f"{path}: column '{name}' has no name of its own. Rename it.")
        if pa.types.is_boolean(kind):
            column = compute.if_else(column, "yes", "no")
        columns[tidied] = _words(column.cast(pa.string()))
    return columns


def _words(column) -> Words:
    """A column of texts, or of a dictionary of texts, without spaces around them."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # of no rows
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], pa.string()).dictionary_encode()
    codes = whole.indices.fill_null(EMPTY).to_numpy(zero_copy_only=False).astype(np.int32)
    words = tuple(whole.dictionary.to_pylist())
    stripped = {word: word.strip() for word in words}
    if all(word and stripped[word] == word for word in words):
        return Words(codes, words)
    return Words(codes, words).renamed(stripped)


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
