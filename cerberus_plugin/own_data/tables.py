"""Read tables of text, in CSV, JSON lines or Parquet, into coded columns, with pyarrow.

Shapes: N rows, W distinct texts ("words") of a column.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..utils.files import decode_text

SUFFIXES = (".csv", ".jsonl", ".parquet")
SPREADSHEETS = (".xlsx", ".xls", ".xlsm", ".ods", ".numbers")
MOST_COLUMNS = 500
MOST_BYTES = 2**29  # largest CSV or JSON file; reading one takes several times as much memory
MOST_ROWS = 10**7  # largest number of rows of a Parquet file, whose size in bytes says little
LONGEST = 2**24  # largest number of bytes of a record
KEYS = ("file_name", "person", "camera", "split", "outfit", "time")  # columns that are not attributes
EMPTY = -1  # code of an empty cell
TO_CSV = ("Open it in the spreadsheet program and save it as CSV: as 'CSV UTF-8' in Excel, or as 'Text CSV' with the "
          "character set UTF-8 in LibreOffice.")


@dataclass(frozen=True)
class Words:
    """A column of text, stored as codes.

    Attributes:
        codes: int32 (N,), for each row an index of `words`, or `EMPTY` for an empty cell.
        words: W distinct texts.
    """

    codes: np.ndarray
    words: tuple[str, ...]

    @classmethod
    def of(cls, values: Sequence[str]) -> Words:
        """Make a column of N texts; "" is an empty cell.

        Examples:
            >>> column = Words.of(["red", "", "red"])
            >>> column.words, column.codes.tolist(), column[0]
            (('red',), [0, -1, 0], 'red')
        """
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
        """Whether no cell is empty."""
        return not (self.codes == EMPTY).any()

    def counts(self) -> np.ndarray:
        """Return the number of rows of each word: int64 (W,)."""
        return np.bincount(self.codes[self.codes != EMPTY], minlength=len(self.words))

    def to_list(self) -> list[str]:
        """Return the N texts; "" for empty cells."""
        words = (*self.words, "")  # EMPTY is the last
        return [words[code] for code in self.codes.tolist()]

    def renamed(self, names: Mapping[str, str]) -> Words:
        """Return the column with other words.

        Args:
            names: the new word by old word; "" for an empty cell. Words that become equal are merged.

        Examples:
            >>> Words.of(["Red", "red", "?"]).renamed({"Red": "red", "?": ""}).to_list()
            ['red', 'red', '']
        """
        new = [names.get(word, word) for word in self.words]
        words = tuple(dict.fromkeys(filter(None, new)))
        number = {word: code for code, word in enumerate(words)} | {"": EMPTY}
        codes = np.array([*(number[word] for word in new), EMPTY], np.int32)  # EMPTY is the last
        return Words(codes[self.codes], words)

    def in_use(self) -> Words:
        """Return the column without words that do not occur."""
        used = self.counts() > 0
        if used.all():
            return self
        codes = np.append(np.where(used, used.cumsum() - 1, EMPTY), EMPTY).astype(np.int32)
        return Words(codes[self.codes], tuple(word for word, own in zip(self.words, used) if own))

    def rows(self, chosen: np.ndarray) -> Words:
        """Return the column of some rows.

        Args:
            chosen: int (n,) or bool (N,).
        """
        return Words(self.codes[chosen], self.words)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        path: path of the file; the folder for a table that was joined.
        columns: columns by name; cells have no surrounding spaces.
        numbers: int64 (N,), index of each row among the records of the file; empty records are skipped.
        parts: the tables from which this one was joined, in order.
    """

    path: Path
    columns: dict[str, Words]
    numbers: np.ndarray = field(repr=False)
    parts: tuple[Table, ...] = ()

    def __len__(self) -> int:
        return len(self.numbers)

    def where(self, row: int) -> str:
        """Return file and line of a row, for a message. This reads the file again, so it is slow."""
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
        found = next((line for place, line in enumerate(lines) if place == number), None)
        return f"{self.path}, " + (f"line {found}" if found else f"row {number + 1}")


def read_table(path: str | Path, required: Sequence[str]) -> Table:
    """Read a table of text.

    CSV files are in UTF-8, or in UTF-16 with a byte order mark, with commas, semicolons or tabs between cells.
    Surrounding spaces of cells and column names are removed. In JSON lines and Parquet, numbers are read as written,
    and true and false as yes and no.

    Args:
        path: path of the file.
        required: names of columns that must exist, in any case.

    Returns:
        the table, without empty rows.

    Raises:
        FileNotFoundError: if the file does not exist.
        ValueError: if it cannot be read, with the line and a remedy.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found. Expected a table with the columns {', '.join(required)}")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: ends in '{suffix}', expected one of {', '.join(SUFFIXES)}. "
                         + (TO_CSV if suffix in SPREADSHEETS else "Give a folder of images, or a table."))
    size = path.stat().st_size
    if size > MOST_BYTES and suffix != ".parquet":
        raise ValueError(f"{path}: has {size / 2**20:,.0f} MiB, expected at most {MOST_BYTES / 2**20:.0f}. Is this the "
                         "right file? Save larger tables as Parquet.")
    columns = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[suffix](path)
    _check_names(path, list(columns), required)
    filled = np.zeros(len(next(iter(columns.values()))), bool)
    for column in columns.values():
        filled |= column.codes != EMPTY
    if not filled.all():  # spreadsheets write empty lines as separators only
        columns = {name: column.rows(filled) for name, column in columns.items()}
    if not filled.any():
        raise ValueError(f"{path}: has no rows below the first line. Write one row for each image, person or outfit.")
    return Table(path, columns, np.flatnonzero(filled))


def joined(folder: Path, tables: Mapping[str, Table]) -> Table:
    """Join the tables in the folders of a split's parts. The part is put before file names, and fills the split.

    Args:
        folder: the folder that contains the folders of the parts.
        tables: tables by part, such as "train".

    Returns:
        one table with the column `split`, which is the part if a table has none.
    """
    parts = list(tables.values())
    columns = {}
    for name in dict.fromkeys(name for table in parts for name in (*table.columns, "split")):
        values: list[str] = []
        for part, table in tables.items():
            own = table.columns.get(name)
            if own is None:
                values += [part if name == "split" else ""] * len(table)
            elif name == "file_name":  # absolute paths stay as they are; they are rejected later
                values += [value if value[:1] in "/\\" or value[1:2] == ":" else f"{part}/{value}"
                           for value in own.to_list()]
            else:
                values += own.to_list()
        columns[name] = Words.of(values)
    return Table(folder, columns, np.concatenate([table.numbers for table in parts]), tuple(parts))


def _check_names(path: Path, names: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in names]
    if missing:
        raise ValueError(f"{path}: has no column '{missing[0]}'; its columns are {_listed(names)}. Rename or add the "
                         "column.")
    folded = Counter(name.casefold() for name in names)
    twice = [name for name in names if folded[name.casefold()] > 1]
    if twice:
        raise ValueError(f"{path}: two columns are called '{twice[0]}', ignoring case. Rename one.")


_TOO_LONG = f"a line is longer than {LONGEST // 2**20} MiB"


def _check_number(path: Path, count: int) -> None:
    if count > MOST_COLUMNS:
        raise ValueError(f"{path}: has {count} columns, expected at most {MOST_COLUMNS}. Each attribute is one column "
                         "with values as text; delete other columns, such as features of images.")


def _tidied(name: str) -> str:
    """A column's name with single spaces; names in `KEYS` become lower case."""
    name = " ".join(name.split())
    return name.casefold() if name.casefold() in KEYS else name


def _first_line(text: str) -> str:
    return re.split(r"[\r\n]", text.lstrip("\r\n"), maxsplit=1)[0]


def _separator(text: str) -> str:
    """Excel separates cells by semicolons if the decimal sign is a comma, and by tabs in "Unicode text"."""
    return max(",;\t", key=_first_line(text).count)


def _csv_header(path: Path, text: str) -> tuple[list[str], str, int]:
    """Names in the first non-blank line, the separator, and the position of the next line."""
    separator = _separator(text)
    if _first_line(text).casefold().startswith("sep="):
        raise ValueError(f"{path}, line 1: is '{_first_line(text)}', an instruction for Excel, but the first line must "
                         "contain the column names. Delete the line.")
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        for line in io.StringIO(text, newline=""):
            end += len(line)
            yield line

    try:
        with _long_cells():
            names = next((cells for cells in csv.reader(lines(), delimiter=separator, strict=True) if cells), [])
    except csv.Error as error:
        raise ValueError(f"{path}, line 1: {error}. Check the quotes of the column names.") from error
    names = [_tidied(name) for name in names]
    _check_number(path, len(names))
    if len(names) < 2:
        raise ValueError(f"{path}, line 1: has one column, '{(names or [''])[0][:40]}'. Separate columns by commas, "
                         "semicolons or tabs, and write their names in the first line.")
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        raise ValueError(f"{path}, line 1: two columns are called '{twice[0]}'. Rename one.")
    return names, separator, end


@contextlib.contextmanager
def _long_cells() -> Iterator[None]:
    """Allow cells of up to `LONGEST` characters; Python's limit applies to all readers of the process."""
    before = csv.field_size_limit(LONGEST)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_records(text: str) -> Iterator[tuple[int, list[str]]]:
    """The first line and the cells of each non-blank record below the header."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text))
    first, header = 1, True
    while True:
        with _long_cells():
            cells = next(reader, None)
        if cells is None:
            return
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

    with path.open("rb") as file:  # check the first line before reading a large file
        first = re.split(rb"[\r\n]", file.read(LONGEST).lstrip(b"\r\n"), maxsplit=1)[0]
    _check_number(path, 1 + max(map(first.count, (b",", b";", b"\t"))))
    if len(first) == LONGEST:
        raise ValueError(f"{path}, line 1: {_TOO_LONG}. Is this a table?")
    text = decode_text(path, path.read_bytes())
    names, separator, end = _csv_header(path, text)
    if not text[end:].strip():
        return {name: Words.of([]) for name in names if name}
    places = [str(place) for place in range(len(names))]
    bad = []

    def refuse(row) -> str:
        if row.text.strip():
            bad.append(row)
        return "skip"

    try:
        table = arrow_csv.read_csv(
            io.BytesIO(text[end:].encode()),
            # A block contains whole records, so pyarrow raises an error for a record longer than a block.
            read_options=arrow_csv.ReadOptions(column_names=places, block_size=LONGEST),
            parse_options=arrow_csv.ParseOptions(delimiter=separator, newlines_in_values=True,
                                                 invalid_row_handler=refuse),
            convert_options=arrow_csv.ConvertOptions(
                column_types={place: pa.dictionary(pa.int32(), pa.string()) for place in places},
                strings_can_be_null=False, null_values=[]))
    except pa.ArrowInvalid as error:
        if "straddling" in str(error):
            odd = next((f"; line {line} is the first with an odd number of quotes" for line, content in
                        enumerate(text.split("\n"), start=1) if content.count('"') % 2), "")
            raise ValueError(f"{path}: {_TOO_LONG}. The closing quote of a value may be missing{odd}.") from error
        raise ValueError(f"{path}: {error}. Check the quotes; only values that contain a separator need them."
                         ) from error
    if bad:
        found = [(f", line {line}", len(cells)) for line, cells in _csv_records(text) if len(cells) != len(names)]
        line, count = found[0] if found else ("", bad[0].actual_columns)
        raise ValueError(f"{path}{line}: has {count} cells, expected {len(names)} as in the first line. Quote values "
                         f"that contain '{separator}', and check the quotes before this line.")
    columns = {name or place: _words(table.column(place)) for place, name in zip(places, names)}
    _check_last(path, text, table, columns)
    for place, name in zip(places, names):
        if not name:
            if (columns.pop(place).codes != EMPTY).any():
                raise ValueError(f"{path}, line 1: column {int(place) + 1} has values but no name. Add a name, or "
                                 "delete the column.")
    return columns


def _check_last(path: Path, text: str, table, columns: Mapping[str, Words]) -> None:
    """Check that the last quote is closed: otherwise pyarrow reads the rest of the file as one value."""
    if table.num_rows:
        last = table.column(table.num_columns - 1)[-1].as_py()
        if "\n" in last and text.endswith(last):
            line = 1 + text[:len(text) - len(last)].count("\n")
            raise ValueError(f"{path}, line {line}: the closing quote of a value is missing. Add it, or delete the "
                             "opening quote.")


def _read_jsonl(path: Path) -> dict[str, Words]:
    """Read JSON lines. Numbers stay as written; pyarrow's reader would drop digits of large numbers."""
    codes: dict[str, list[int]] = {}  # by column, up to its last filled row
    words: dict[str, dict[str, int]] = {}
    read = json.JSONDecoder(object_pairs_hook=list, parse_int=str, parse_float=str, parse_constant=str).decode
    example = 'expected one object per line, such as {"file_name": "0001.jpg", "person": "7"}'
    row = 0
    for line, text in enumerate(decode_text(path, path.read_bytes()).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            record = read(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {line}: not valid JSON ({error}), {example}") from error
        if not text.lstrip().startswith("{"):
            raise ValueError(f"{path}, line {line}: is {text.strip()[:40]}, {example}")
        for name, value in record:
            if value is None or value == "":
                continue
            if value is True or value is False:
                value = "yes" if value else "no"
            elif not isinstance(value, str):
                raise ValueError(f"{path}, line {line}: '{name}' is {text_of(value)}, expected text. Delete it, or "
                                 "write one column for each of its parts.")
            if name not in codes:
                codes[name], words[name] = [], {}
                _check_number(path, len(codes))
            own, known = codes[name], words[name]
            if len(own) > row:
                raise ValueError(f"{path}, line {line}: has '{name}' twice. Delete one of the two.")
            own += [EMPTY] * (row - len(own))
            own.append(known.setdefault(value, len(known)))
        row += 1
    columns: dict[str, Words] = {}
    for name, own in codes.items():
        column = Words(np.array(own + [EMPTY] * (row - len(own)), np.int32), tuple(words[name]))
        _add_column(path, columns, name, column.renamed({word: word.strip() for word in words[name]}))
    return columns


def _read_parquet(path: Path) -> dict[str, Words]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        _check_number(path, len(file.schema_arrow.names))
        if file.metadata.num_rows > MOST_ROWS:
            raise ValueError(f"{path}: has {file.metadata.num_rows:,} rows, expected at most {MOST_ROWS:,}. Is this "
                             "the right file?")
        table = file.read()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable Parquet file ({error}). Write it again, or as CSV.") from error
    return _columns_of(path, table)


def _columns_of(path: Path, table) -> dict[str, Words]:
    """Convert columns of any type to text."""
    import pyarrow as pa
    from pyarrow import compute

    columns: dict[str, Words] = {}
    for name, column in zip(table.column_names, table.columns):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise ValueError(f"{path}: column '{name}' has the type {kind}, expected text. Delete it, or write one "
                             "column for each of its parts.")
        if pa.types.is_boolean(kind):
            column = compute.if_else(column, "yes", "no")
        if pa.types.is_floating(kind):  # pandas stores whole numbers as floats if a cell is empty
            column = compute.if_else(compute.is_nan(column), None, column)
            whole = compute.all(compute.equal(column, compute.round(column))).as_py()
            column = column.cast(pa.int64(), safe=False) if whole else column
        try:
            _add_column(path, columns, name, _words(column.cast(pa.string())))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: column '{name}' is not encoded in UTF-8. Write the file again.") from error
    return columns


def _add_column(path: Path, columns: dict[str, Words], name: str, column: Words) -> None:
    tidied = _tidied(name)
    if not tidied or tidied in columns:
        raise ValueError(f"{path}: column '{name}' has an empty or repeated name. Rename it.")
    for word in column.words:
        if "\0" in word or not word.isascii() and re.search("[\ud800-\udfff]", word):
            raise ValueError(f"{path}: column '{name}' contains {word!r}, which is not valid text. Correct the cell.")
    columns[tidied] = column


def text_of(value, most: int = 60) -> str:
    """Return a value as text for a message, shortened to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def _words(column) -> Words:
    """Convert a pyarrow column of texts, dictionary-encoded or not; surrounding spaces are removed."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    whole = column.unify_dictionaries().combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # happens without rows
        whole = whole.chunk(0) if whole.num_chunks else pa.array([], pa.string()).dictionary_encode()
    codes = whole.indices.fill_null(EMPTY).to_numpy(zero_copy_only=False).astype(np.int32)
    words = tuple(whole.dictionary.to_pylist())
    stripped = {word: word.strip() for word in words}
    if all(word and stripped[word] == word for word in words):
        return Words(codes, words)
    return Words(codes, words).renamed(stripped)


def _listed(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
