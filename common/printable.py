"""A text that may hold anything, as a line that a terminal shows and does not obey."""


def printable(text: str) -> str:
    """The text with � for what is no printable character: escapes, ends of line, changes of direction.

    >>> printable("north\\x1b[2J\\nε = 0.01")
    'north�[2J�ε = 0.01'
    """
    return "".join(character if character.isprintable() else "�" for character in text)
