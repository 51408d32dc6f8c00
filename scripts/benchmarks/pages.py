"""Markdown pages whose tables are written by scripts: a table, and the text between two markers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column has words and whose others have numbers.

    >>> print(table(["loop", "speed"], [["ours", "1.00"]]))
    | loop | speed |
    | --- | ---: |
    | ours | 1.00 |
    """
    lines = [headers, ["---", *["---:"] * (len(headers) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replaced(page: str, name: str, text: str) -> str:
    """Return a page with other text between its markers; without them, it is unchanged.

    >>> replaced("<!-- a -->old<!-- /a -->", "a", "new").split()
    ['<!--', 'a', '-->', 'new', '<!--', '/a', '-->']
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    new = f"{begin}\n\n{text}\n\n{end}"
    return re.sub(f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: new, page, flags=re.DOTALL)
