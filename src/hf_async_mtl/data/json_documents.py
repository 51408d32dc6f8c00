"""JSON files that hold one object instead of a row per line: tables as pandas writes them, and SQuAD."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_document(path: Path) -> list[Row] | None:
    """Return the rows of a file that holds one JSON object in a known form; None for every other file.

    The forms are those of ``DataFrame.to_json`` with ``orient`` ``columns`` (its default), ``index``, ``split`` or
    ``table``, rows in a list ``data``, and SQuAD.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            first = next((line for line in file if line.strip()), "")
            if not first.startswith("{") or (_is_json(first) and any(line.strip() for line in file)):
                return None
        return _rows(json.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, LookupError, TypeError):  # The reader of `datasets` says what is wrong with the file.
        return None


def read_objects(path: Path) -> Iterator[Row]:
    """Yield the rows of a file with an object per line, or with a list of objects."""
    with path.open(encoding="utf-8-sig") as file:
        first = file.read(1)
        file.seek(0)
        yield from json.load(file) if first == "[" else (json.loads(line) for line in file if line.strip())


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _rows(found: Mapping[str, Any]) -> list[Row] | None:
    if found.keys() == {"columns", "index", "data"}:
        return [dict(zip(found["columns"], values, strict=True)) for values in found["data"]]
    rows = found.get("data")
    if isinstance(rows, list) and rows and found.keys() <= {"data", "version", "schema"}:
        return list(_squad_rows(rows)) if "paragraphs" in rows[0] else rows
    if not found or not all(isinstance(column, dict) for column in found.values()):
        return None
    # The keys of the rows are numbers, unless the user has named them.
    rows_first = all(key.isdigit() for key in found)
    return list(found.values()) if rows_first else _transposed(found)


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
