"""Words of others (class names, paths, attributes, messages) as they are shown: on terminals, in pictures, pages and tables."""

from __future__ import annotations

import json
import re
from typing import Any

NAME, CELL, PARAGRAPH = 60, 200, 2000  # signs that are shown at most: of a name, of a line or a table's cell, of a sentence
# What steers a terminal, turns the order of text around, breaks a line, or is half a sign (a byte that is not UTF-8).
UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb]")
NUMBERS = re.compile(r"\[\n[^\[\]{}\"]*\]")  # a list of numbers, laid out with one a line
UNSEEN_IN_JSON = re.compile(UNSEEN.pattern.replace(r"\x00-\x1f", ""))  # JSON escapes these itself, and is laid out with line breaks


def plain(text: Any) -> str:
    r"""A text on one line, in which signs that control what shows it stand as escapes, such as `\x1b`, `\n` and `\u202e`."""
    return UNSEEN.sub(lambda sign: sign[0].encode("unicode_escape").decode("ascii"), str(text))


def brief(text: Any, most: int = NAME) -> str:
    """A plain text of at most so many signs; a longer one ends in an ellipsis.

    Text is laid out in a time that grows faster than its length: thousands of signs take minutes.
    """
    text = str(text)
    shown = plain(text[:most])
    return shown if len(text) <= most and len(shown) <= most else shown[: most - 1] + "…"


def slip(one: str, other: str) -> bool:
    """Whether a text may be another one mistyped: two letters differ, are exchanged, missing or too many; one in texts of four or fewer.

    Capitals do not count. Texts of other numbers are others, and so are those of one or two signs.
    """
    one, other = one.casefold(), other.casefold()
    most = 2 if min(len(one), len(other)) > 4 else 1
    if min(len(one), len(other)) < 3 or abs(len(one) - len(other)) > most or len(set(one) ^ set(other)) > 2 * most:
        return False
    if [sign for sign in one if sign.isdigit()] != [sign for sign in other if sign.isdigit()]:
        return False
    before, last = [], list(range(len(other) + 1))  # rows of Damerau's and Levenshtein's distances
    for row, sign in enumerate(one, 1):
        now = [row]
        for column, its in enumerate(other, 1):
            now.append(min(last[column] + 1, now[-1] + 1, last[column - 1] + (sign != its)))
            if row > 1 and column > 1 and (sign, one[row - 2]) == (other[column - 2], its):
                now[-1] = min(now[-1], before[column - 2] + 1)
        before, last = last, now
    return last[-1] <= most


def json_text(document: Any, ascii_only: bool = False, nan: bool = True) -> str:
    """A document as JSON, laid out to be read, a list of numbers on one line; what `plain` escapes stands as escapes too."""
    text = json.dumps(document, indent=2, ensure_ascii=ascii_only, allow_nan=nan)
    text = NUMBERS.sub(lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"), text)
    return UNSEEN_IN_JSON.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text) + "\n"
