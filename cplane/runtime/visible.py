"""Text from elsewhere, made safe to print: what would act on a terminal is shown as an escape."""

import re

ACTING = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, of which ESC and CSI begin sequences; tab and newline stay
    r"\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # other line ends, and what turns the direction of text
    r"\ud800-\udfff]"  # half a surrogate pair, which cannot be printed
)
"""Characters that a terminal acts on, or that make text look like other text."""


def visible(text: str) -> str:
    r"""Return text with visible escapes for what a terminal would act on, such as `\x1b` for ESC.

    JSON stays the same JSON: in its texts, only characters from U+007F on are not escaped already.
    """
    return ACTING.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"
