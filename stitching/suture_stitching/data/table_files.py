"""The files that tables come in, read a piece at a time: text, Parquet, Excel, and those of statistics programs."""

from __future__ import annotations

import csv
import io
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.csv
import pyarrow.parquet

from suture_contract.errors import SutureError
from suture_contract.extras import how_to_install
from suture_contract.naming import did_you_mean, folded
from suture_stitching.data.cells import is_plain, written_as
from suture_stitching.data.text_table import NULLS, MaybeThousands, TextTable, Thousands, opened, sniff
from suture_stitching.data.words import is_row_number, names_patient

#: Of a table that are held at a time.
_BYTES = 4 * 1024 * 1024
#: Rows of a statistics file that are held at a time.
_ROWS = 10_000
#: How Arrow names the column with a cell that does not convert; what follows is the cell, which is not passed on.
_BAD_CELL = re.compile(r"In CSV column #(\d+): CSV conversion error")
#: Of a column, that are looked at for what they may be.
_OTHER_CELLS = 500
EXCEL = (".xlsx", ".xlsm")
STATISTICS = (".dta", ".sav", ".zsav", ".por", ".sas7bdat", ".xpt")


class TableFile(ABC):
    """A table on disk: names of its columns without spaces around, their types, and its rows in pieces."""

    def __init__(self, path: Path, schema: Any, note: str = "") -> None:
        self.path = path
        self.note = note
        self._schema = schema
        self._raw = {name.strip(): name for name in schema.names}
        self.names = [name.strip() for name in schema.names]

    def type_of(self, name: str) -> Any:
        """Return the Arrow type of a column, as far as its first rows show it."""
        return self._schema.field(self._raw[name]).type

    def is_number(self, name: str) -> bool:
        """Whether a column holds numbers, or nothing."""
        kind, types = self.type_of(name), pyarrow.types
        number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
        return bool(number or types.is_null(kind))

    def is_text(self, name: str) -> bool:
        """Whether a column holds texts."""
        return _is_text(self.type_of(name))

    def is_list(self, name: str) -> bool:
        """Whether a column holds a list of numbers in each row."""
        kind, types = self.type_of(name), pyarrow.types
        return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))

    def check_names(self) -> None:
        """Raise `SutureError` where columns cannot be told apart by their names."""
        repeated = next((name for name in self.names if self.names.count(name) > 1), None)
        if repeated == "":
            raise SutureError(
                "dataset.unreadable",
                f"the first row names {sum(map(bool, self.names))} of {len(self.names)} columns",
                where=str(self.path),
                hint="the first row is the header: remove titles and empty rows above it, and columns without a name",
            )
        if repeated is not None:
            raise SutureError(
                "dataset.duplicate",
                f"the column '{repeated}' occurs more than once",
                where=str(self.path),
                hint="rename one of them, or remove it",
            )

    def written(self, name: str) -> tuple[str, str, str]:
        """Return what a column of texts holds, what it does not, and what to do."""
        others: set[str] = set()
        plain = 0
        for batch in self._batches([self._raw[name]], set()):
            column = batch.column(self._raw[name])
            texts = {str(cell).strip() for cell in column.unique().to_pylist() if cell is not None} - {""}
            own = {text for text in texts if not is_plain(text)}
            others, plain = others | own, plain + len(texts) - len(own)
            if len(others) > _OTHER_CELLS:
                break
        if (known := written_as(others)) is not None:
            return known[0], "plain numbers", known[1]
        if plain > len(others):
            hint = "write numbers in all of its rows, or leave those without one empty; or leave it out of features"
            return "text in some of its rows", "numbers", hint
        hint = (
            f'say the texts in the order of their numbers, categories = {{ "{name}" = ["...", "..."] }}, as the '
            "models were trained; or leave it out of features"
        )
        return "text", "numbers", hint

    def not_numbers(self, name: str) -> SutureError:
        """Return the error for a column that should hold numbers."""
        kind, types, wanted = self.type_of(name), pyarrow.types, "numbers"
        if types.is_temporal(kind):
            content, hint = "dates or times", "compute a number from it, an age say, or leave it out of features"
        elif self.is_list(name):
            content, hint = "lists", "name it as the only feature to read signals, or leave it out of features"
        elif types.is_nested(kind):
            content, hint = "fields of their own", "give each a column of its own, or leave it out of features"
        else:
            content, wanted, hint = self.written(name)
        return SutureError(
            "dataset.not_numbers",
            f"the column '{name}' holds {content}, not {wanted}",
            where=str(self.path),
            hint=hint,
        )

    def batches(self, columns: Sequence[str], numbers: Collection[str]) -> Iterator[Any]:
        """Yield these columns, some rows at a time: `numbers` as numbers or booleans, others as they are or text."""
        raw = [self._raw[name] for name in columns]
        with self._naming(self.names):
            for batch in self._batches(raw, {self._raw[name] for name in numbers}):
                yield pyarrow.RecordBatch.from_arrays([batch.column(name) for name in raw], list(columns))

    @abstractmethod
    def _batches(self, columns: list[str], numbers: set[str]) -> Iterator[Any]: ...

    @contextmanager
    def _naming(self, names: Sequence[str] = ()) -> Iterator[None]:
        with _naming_the_file(self.path, self):
            yield


class _Parquet(TableFile):
    def __init__(self, path: Path) -> None:
        with _naming_the_file(path), pyarrow.parquet.ParquetFile(path) as file:
            super().__init__(path, file.schema_arrow)

    def _batches(self, columns: list[str], numbers: set[str]) -> Iterator[Any]:
        with pyarrow.parquet.ParquetFile(self.path, buffer_size=1 << 20) as file:
            yield from file.iter_batches(rows_held(len(columns)), columns=columns)


class _Text(TableFile):
    def __init__(self, path: Path) -> None:
        self.path, self._form = path, sniff(path)
        with _naming_the_file(path), self._open(pyarrow.csv.ConvertOptions(**self._nulls)) as file:
            super().__init__(path, file.schema, self._form.in_words)

    @property
    def _nulls(self) -> dict[str, Any]:
        return {"strings_can_be_null": True, "null_values": NULLS, "decimal_point": self._form.decimal}

    def _open(self, options: Any) -> Any:
        form = self._form
        return pyarrow.csv.open_csv(
            pyarrow.input_stream(str(self.path), compression="gzip" if form.zipped else None),
            read_options=pyarrow.csv.ReadOptions(
                encoding="utf8" if form.encoding in ("utf-8", "utf-8-sig") else form.encoding, skip_rows=form.skip
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=form.delimiter, newlines_in_values=True),
            convert_options=options,
        )

    def _batches(self, columns: list[str], numbers: set[str]) -> Iterator[Any]:
        # What the first rows show as an integer may be broken further down.
        types = {
            name: (pyarrow.bool_() if pyarrow.types.is_boolean(self._schema.field(name).type) else pyarrow.float64())
            if name in numbers
            else pyarrow.string()
            for name in columns
        }
        options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=columns, **self._nulls)
        maybe = MaybeThousands(numbers if self._form.delimiter != "," else ())
        with self._open(options) as file:
            for batch in file:
                maybe.look(batch)
                yield batch
        if maybe.names:
            self._check_thousands(maybe.names)

    def _check_thousands(self, names: list[str]) -> None:
        """Raise where the cells of a column seem to have their thousands set apart by what is a decimal sign."""
        sign = self._form.decimal
        looks = {name: Thousands(sign) for name in names}
        for batch in self._batches(names, set()):
            for name, look in list(looks.items()):
                look.add(cell.strip() for cell in batch.column(name).drop_null().to_pylist())
                if not look.possible:
                    del looks[name]
            if not looks:
                return
        doubtful = next((name.strip() for name, look in looks.items() if look.seem), None)
        if doubtful is not None:
            raise SutureError(
                "dataset.not_numbers",
                f"the column '{doubtful}' holds whole numbers up to 999, and beyond them only such with three digits "
                f"behind a '{sign}', which seem to be thousands",
                where=str(self.path),
                hint=f"write them without a sign for thousands: 1234, not 1{sign}234; if they are decimals, write the "
                f"whole numbers so as well: 950{sign}0",
            )


class _Frames(TableFile):
    """What pandas reads: frames of some rows each, brought to the types of the first."""

    def __init__(self, path: Path, note: str) -> None:
        with _naming_the_file(path):
            first = next(self._frames(path), None)
        if first is None:
            raise SutureError("dataset.empty", "the table has no rows", where=str(path))
        super().__init__(path, _arrow(first, None).schema, note)

    @abstractmethod
    def _frames(self, path: Path) -> Iterator[Any]: ...

    def _batches(self, columns: list[str], numbers: set[str]) -> Iterator[Any]:
        for frame in self._frames(self.path):
            yield from _arrow(frame[columns], numbers).to_batches()


class _Excel(_Frames):
    def __init__(self, path: Path, sheet: str | None) -> None:
        sheets = sheets_of(path)
        if (sheet is None and len(sheets) > 1) or sheet not in (None, *sheets):
            raise SutureError(
                "dataset.sheet",
                f"the file has {len(sheets)} sheets: {', '.join(sheets[:12])}"
                if sheet is None
                else f"there is no sheet '{sheet}'; {did_you_mean(sheet, sheets)}",
                where=str(path),
                hint='name it: sheet = "..."',
            )
        self._sheet = sheet or sheets[0]
        self._check_header(path)
        super().__init__(path, "")

    def _check_header(self, path: Path) -> None:
        """Raise where pandas would call columns by other names than the first row does."""
        import pandas

        with _naming_the_file(path):
            first = pandas.read_excel(path, sheet_name=self._sheet, header=None, nrows=20, dtype=str)
        names = [str(name).strip() for name in first.iloc[0].dropna()] if len(first) else []
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise SutureError(
                "dataset.duplicate",
                f"the column '{repeated}' occurs more than once",
                where=str(path),
                hint="rename one of them, or remove it",
            )
        unnamed = first.iloc[1:, first.iloc[:1].isna().to_numpy().reshape(-1)] if len(first) else first
        if not names or int(unnamed.notna().any().sum()) > 1:
            raise SutureError(
                "dataset.unreadable",
                f"the first row names {len(names)} of {first.shape[1]} columns",
                where=str(path),
                hint="the first row is the header, and it is one row: remove titles and empty rows above it, join the "
                "names of two rows into one, and divide merged cells",
            )

    def _frames(self, path: Path) -> Iterator[Any]:
        import pandas

        yield pandas.read_excel(path, sheet_name=self._sheet, na_values=NULLS)


class _Statistics(_Frames):
    def _frames(self, path: Path) -> Iterator[Any]:
        import pandas

        suffix = path.suffix.lower()
        if suffix == ".dta":
            with pandas.read_stata(path, chunksize=_ROWS) as frames:
                yield from frames
        elif suffix in (".sas7bdat", ".xpt"):
            options: dict[str, Any] = {"encoding": "infer"} if suffix == ".sas7bdat" else {}
            with pandas.read_sas(path, chunksize=_ROWS, **options) as frames:
                yield from (_decoded(frame) for frame in frames)
        else:
            import pyreadstat

            read = pyreadstat.read_por if suffix == ".por" else pyreadstat.read_sav
            chunks = pyreadstat.read_file_in_chunks(read, path, chunksize=_ROWS, apply_value_formats=True)
            yield from (frame for frame, _ in chunks)


def sheets_of(path: Path) -> list[str]:
    """Return the names of an Excel file's sheets. Raises `SutureError` (`dataset.*`)."""
    _need_pandas(path)
    import pandas

    with _naming_the_file(path), pandas.ExcelFile(path) as book:
        return [str(name) for name in book.sheet_names]


def _need_pandas(path: Path) -> None:
    if find_spec("pandas") is None:
        raise SutureError(
            "dataset.missing_package",
            "Excel and statistics files need pandas",
            where=str(path),
            hint=how_to_install("tables"),
        )


def _is_text(kind: Any) -> bool:
    types = pyarrow.types
    return bool(
        types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_dictionary(kind)
    )


def open_table_file(path: Path, kind: str, sheet: str | None = None) -> TableFile:
    """Open a table, of the format `kind`, or `list`: then by its name. Raises `SutureError` (`dataset.*`)."""
    suffix = path.suffix.lower()
    if kind == "list":
        kind = (
            "parquet"
            if suffix == ".parquet"
            else "excel"
            if suffix in EXCEL
            else "statistics"
            if suffix in STATISTICS
            else "csv"
        )
    if kind == "parquet":
        return _Parquet(path)
    if kind == "csv":
        return _Text(path)
    _need_pandas(path)
    return _Excel(path, sheet) if kind == "excel" else _Statistics(path, "")


def rows_held(columns: int) -> int:
    """Return how many rows of so many numbers are held at a time."""
    return max(1, _BYTES // (8 * columns))


def column_names(path: Path) -> list[str]:
    """Return the columns of a training table that are features by their names: not label, split, patient or row."""
    if path.suffix.lower() == ".parquet":
        names = _Parquet(path).names
    else:
        form: TextTable = sniff(path)
        with opened(path, form.zipped) as raw, io.TextIOWrapper(raw, form.encoding) as text:
            for _ in range(form.skip):
                next(text, "")
            names = [name.strip() for name in next(csv.reader(text, delimiter=form.delimiter), [])]
    taken = ("label", "split")
    return [name for name in names if folded(name) not in taken and not is_row_number(name) and not names_patient(name)]


def _arrow(frame: Any, numbers: set[str] | None) -> Any:
    """Return a frame as an Arrow table: columns of mixed things as text, but `numbers` as numbers."""
    frame = frame.rename(columns=str)
    for name in frame.columns:
        column = frame[name]
        if str(column.dtype) == "category":
            frame[name] = column.astype(object)
        if frame[name].dtype == object:
            frame[name] = frame[name].map(lambda cell: None if cell is None or cell != cell else str(cell))
    table = pyarrow.Table.from_pandas(frame, preserve_index=False)
    for index, name in enumerate(table.column_names):
        kind = pyarrow.float64() if numbers is not None and name in numbers else None
        if kind is not None and not pyarrow.types.is_boolean(table.column(name).type):
            table = table.set_column(index, name, table.column(name).cast(kind))
    return table.combine_chunks()


def _decoded(frame: Any) -> Any:
    for name in frame.columns:
        if frame[name].dtype == object:
            frame[name] = frame[name].map(lambda cell: cell.decode("latin-1") if isinstance(cell, bytes) else cell)
    return frame


@contextmanager
def _naming_the_file(path: Path, file: TableFile | None = None) -> Iterator[None]:
    try:
        yield
    except (MemoryError, SutureError, PermissionError, AttributeError, NameError):
        raise
    except Exception as error:
        # What readers say quotes the line they stumbled over, so it is not passed on.
        if file is not None and (cell := _BAD_CELL.search(str(error))) and int(cell[1]) < len(file.names):
            raise file.not_numbers(file.names[int(cell[1])]) from None
        suffix = path.suffix.lower()
        kind = {".parquet": "a Parquet file"}.get(suffix, "an Excel file" if suffix in EXCEL else None)
        kind = kind or ("a file of a statistics program that can be read" if suffix in STATISTICS else None)
        raise SutureError(
            "dataset.unreadable",
            f"not {kind}" if kind else "not CSV: a row has too many or too few cells",
            where=str(path),
            hint="a table has one header line, and one cell per column in every row",
        ) from None


__all__ = ["EXCEL", "STATISTICS", "TableFile", "column_names", "open_table_file", "rows_held", "sheets_of"]
