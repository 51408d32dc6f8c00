"""JSON files that hold one object instead of a row per line: tables as pandas writes them, and SQuAD."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any, TextIO

from .config import data_suffix

Row = dict[str, Any]


def read_document(path: Path, columns: Set[str]) -> list[Row] | None:
    """Return the rows of a file that holds one JSON object in a known form; None for every other file.

    ``columns`` are some of the table, which tell whether an object of objects has rows or columns.

    The forms are those of ``DataFrame.to_json`` with ``orient`` ``columns`` (its default), ``index``, ``split`` or
    ``table``, lists as columns (in a ``.json`` file, for a line of a ``.jsonl`` file with lists is a row), rows in a
    list ``data``, and SQuAD.
    """
    try:
        with _open(path) as file:
            first = next((line for line in file if line.strip()), "")
            if not first.startswith("{") or (_is_json(first) and any(line.strip() for line in file)):
                return None
            file.seek(0)
            return _rows(json.load(file), columns, lists_are_columns=data_suffix(path) == ".json")
    except (ValueError, LookupError, TypeError, OSError, EOFError):
        return None  # The reader of `datasets` says what is wrong with the file.


def read_objects(path: Path) -> Iterator[Row]:
    """Yield the rows of a file with an object per line, or with a list of objects."""
    with _open(path) as file:
        first = file.read(1)
        file.seek(0)
        yield from json.load(file) if first == "[" else (json.loads(line) for line in file if line.strip())


def _open(path: Path) -> TextIO:
    """Open a file, compressed or not, whose first character may be a mark of the byte order."""
    open_file: Callable[..., TextIO] = gzip.open if path.suffix == ".gz" else open
    return open_file(path, "rt", encoding="utf-8-sig")


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _rows(found: Mapping[str, Any], columns: Set[str], *, lists_are_columns: bool) -> list[Row] | None:
    if found.keys() == {"columns", "index", "data"}:
        return [dict(zip(found["columns"], values, strict=True)) for values in found["data"]]
    rows = found.get("data")
    if isinstance(rows, list) and rows and found.keys() <= {"data", "version", "schema"}:
        return list(_squad_rows(rows)) if "paragraphs" in rows[0] else rows
    if lists_are_columns and found and all(isinstance(column, list) for column in found.values()):
        return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]
    if not found or not all(isinstance(column, dict) for column in found.values()):
        return None
    rows = list(found.values())
    rows_first = bool(columns & rows[0].keys()) and not columns & found.keys()
    return rows if rows_first or all(key.isdigit() for key in found) else _transposed(found)


def _transposed(columns: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    keys = list(next(iter(columns.values())))
    return [{name: values[key] for name, values in columns.items()} for key in keys]


def _squad_rows(articles: list[dict[str, Any]]) -> Iterator[Row]:
    """Yield a row per question, with the columns that SQuAD has on the Hub."""
    for article in articles:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                row = {"id": question.get("id"), "title": article.get("title"), "context": paragraph["context"]}
                row["question"] = question["question"]
                if "answers" in question:
                    keys = ("text", "answer_start")
                    row["answers"] = {key: [answer[key] for answer in question["answers"]] for key in keys}
                yield row
