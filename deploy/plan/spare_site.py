"""Whether a study can go on without one of its sites."""

from itertools import count

from ...common.secagg.parameters import default_threshold


def no_spare_site(*, sites: int, threshold: int) -> str | None:
    """What it means that every site must answer, and how many more would change it; None where one may be lost.

    >>> import textwrap
    >>> no_spare_site(sites=5, threshold=4)
    >>> print(textwrap.fill(no_spare_site(sites=3, threshold=3), 116))
    All 3 sites must answer: one that is lost, leaves or is dismissed ends the study, and without it no successor can be
    signed either. With 4 sites, of which 3 must answer, one may be lost.
    """
    if threshold < sites:
        return None
    more = next(n for n in count(sites + 1) if default_threshold(n) < n)
    return (
        f"All {sites} sites must answer: one that is lost, leaves or is dismissed ends the study, and without it no "
        f"successor can be signed either. With {more} sites, of which {default_threshold(more)} must answer, one may "
        "be lost."
    )
