"""Texts that attack whoever shows them: escape sequences for terminals, and markup for pages."""

TITLE = "\x1b]0;owned\x07"
"""Escape sequence that sets a terminal's title; echo-cli itself never prints one."""
ESCAPES = f"{TITLE}\x9b2J\u202egnp.exe"
"""Text that would set a terminal's title, clear its screen and reverse its letters."""
UNPRINTABLE = ("\x1b]", "\x07", "\x9b", "\u202e")
"""Characters of ESCAPES that must not reach a terminal."""
HTML = "<script>alert(1)</script><img src=x onerror=alert(2)>"
