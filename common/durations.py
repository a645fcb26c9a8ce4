"""Times as people say them."""


def duration(seconds: float) -> str:
    """A time in the two units that say most of it.

    >>> duration(21.4), duration(372), duration(7260), duration(259200), duration(100000)
    ('21 s', '6 min 12 s', '2 h 1 min', '3 d 0 h', '1 d 3 h')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"
