"""What a user may have meant by a word that is not known: the same words for every such mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that ``word`` looks most like, upper case or lower, if any is like it."""
    words = {name.casefold(): name for name in reversed([*known])}
    found = difflib.get_close_matches(word.casefold(), words, n=1)
    return words[found[0]] if found else None


def did_you_mean(near: str | None) -> str:
    """The end of an error about an unknown word: ``; did you mean 'epochs'?``, or nothing."""
    return "" if near is None else f"; did you mean {near!r}?"


def remedy(word: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown word that has not listed the known ones yet.

    Parameters
    ----------
    word : str
        What the user wrote.
    known : iterable of str
        What they may write there, in the order in which it is listed.

    Returns
    -------
    str
        ``; did you mean 'epochs'?`` if one of the known is like it, else ``; known: epochs, engine``.
    """
    known = list(known)
    return did_you_mean(nearest(word, known)) or f"; known: {', '.join(known) or 'none'}"
