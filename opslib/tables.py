"""A table from rows, as text for a terminal and as HTML for a notebook."""

import html
from collections.abc import Mapping, Sequence


class Table:
    """What shows its `rows` as a table; every row has the same columns."""

    @property
    def rows(self) -> Sequence[Mapping[str, object]]:
        """The rows, by the names of the columns."""
        raise NotImplementedError

    def __str__(self) -> str:
        """Return the table as text."""
        lines = [list(self.rows[0]), *([str(value) for value in row.values()] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        )

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in self.rows[0])
        rows = ("".join(f"<td>{html.escape(str(value))}</td>" for value in row.values()) for row in self.rows)
        body = "".join(f"<tr>{cells}</tr>" for cells in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
