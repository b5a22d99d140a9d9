"""Tables as text: for a terminal, and as Markdown."""

from collections.abc import Sequence


def number(value: float | None, form: str) -> str:
    """Returns a number in a format such as ".2f"; "-" for None."""
    return "-" if value is None else f"{value:{form}}"


def table(rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    """Returns rows (lists of str, the first one the header) as text, all but the text columns flush right."""
    columns = list(zip(*rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    right = [column not in text_columns for column in range(len(columns))]

    def line(row):
        cells = zip(row, widths, right, strict=True)
        return "  ".join(
            cell.rjust(width) if flush else cell.ljust(width) for cell, width, flush in cells
        ).rstrip()

    return "\n".join([line(rows[0]), "  ".join("-" * width for width in widths), *map(line, rows[1:])])


def markdown_table(rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    """Returns rows (lists of str, the first one the header) as Markdown; numbers flush right."""
    rule = ["---" if column in text_columns else "---:" for column in range(len(rows[0]))]
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], rule, *escaped[1:]])
