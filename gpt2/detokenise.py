"""Undo the tokenisation of evaluation sets, so that a model trained on plain text can read them.

WikiText, the Penn Treebank and the One Billion Word benchmark are distributed as tokens with spaces
between them ("1 @,@ 000 , and did n't"). Radford et al. 2019 (section 3.1) score them after
"invertible de-tokenizers" and divide by the number of the original tokens; those rules were not
published. These are ours. They join what such a tokeniser cuts off and change no letter and no
digit, but a quotation mark whose partner is missing, for example, stays between its spaces. As the
original can nearly always be had back, -log p(plain text) stands for -log p(original).
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal

Rules = Literal["none", "wikitext", "ptb", "lm1b"]

_NUMBER_ESCAPES = re.compile(r" @([-,.])@ ")
_CLOSING = re.compile(r" +(?=[,.;:!?%)\]}](?:\s|[.,;:!?)\]}\"']|$)|\.\.\.(?:\s|$))")
_OPENING = re.compile(r"(?<=[(\[{]) +|(?<=(?<!\S)[$#\u00a3]) (?=\d)")  # u00a3: pound sign
_QUOTED = re.compile(r'(?<!\S)" ([^"\n]*?) "(?=[\s,.;:!?)\]}]|$)')
_SINGLE_QUOTED = re.compile(r"(?<!\S)' ((?:(?! ')[^\n])*?) '(?=[\s,.;:!?)\]}]|$)")
_CONTRACTION = re.compile(r" (?='(?:s|t|re|ve|ll|d|m|S|T|RE|VE|LL|D|M)(?!\w))| (?=n't(?!\w))")
_PLURAL_POSSESSIVE = re.compile(r"(?<=s) '(?=\s)")
_LINE_SPACES = re.compile(r"^ +| +$", flags=re.MULTILINE)


def wikitext(text: str) -> str:
    """WikiText (Moses' tokens, `@-@` inside words and numbers, a space around each line).

    Headings keep their form, ` = = Career = = ` becoming `== Career ==`.
    """
    text = _NUMBER_ESCAPES.sub(r"\1", text)
    text = re.sub(r"(?<==) (?==)", "", text)
    text = text.replace(" \u00b0 ", "\u00b0 ")  # degree sign
    return _LINE_SPACES.sub("", _join(text))


def ptb(text: str) -> str:
    """Penn Treebank as prepared by Mikolov: lower case, no punctuation, `N` for numbers.

    `N` and `<unk>` stay, as nothing says what they stood for.
    """
    return _LINE_SPACES.sub("", _join(re.sub(r"(?<=[$#]) (?=N)", "", text)))


def lm1b(text: str) -> str:
    """One Billion Word benchmark (Moses' tokens, ASCII quotation marks)."""
    return _LINE_SPACES.sub("", _join(text))


DETOKENISERS: Mapping[Rules, Callable[[str], str]] = {
    "none": lambda text: text,
    "wikitext": wikitext,
    "ptb": ptb,
    "lm1b": lm1b,
}


def _join(text: str) -> str:
    """What the tokenisers have in common: quotation marks, brackets, punctuation, contractions."""
    text = _QUOTED.sub(r'"\1"', text)
    text = _PLURAL_POSSESSIVE.sub("'", text)
    text = _CONTRACTION.sub("", text)
    text = _SINGLE_QUOTED.sub(r"'\1'", text)
    text = _OPENING.sub("", text)
    return _CLOSING.sub("", text)
