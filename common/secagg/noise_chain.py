"""The chain that the layers of a site's noise hang on: one secret, from which a site shows as much as may be taken off.

Each link is derived from the one above it and says nothing of that, as the states of a pseudo-random generator that
is run backwards. Who has a link has the keys of the layers up to its level, and of none above. The last link, that of
the threshold, has no layer and is public from the start: what is shown later is checked against it.
"""

from collections.abc import Collection, Sequence
from itertools import pairwise

from .keys import context, derive
from .parameters import SecaggParameters

LINK_LABEL = b"grandrounds/secagg/v1/noise-link\n"
LAYER_LABEL = b"grandrounds/secagg/v1/noise-layer\n"


def noise_chain(
    link: bytes, levels: Sequence[int], *, manifest: str, attempt: int, sender: str
) -> tuple[dict[int, bytes], dict[int, bytes]]:
    """From the secret ``link`` of the last of ``levels``, which rise: the link of each, and the key of each layer."""
    bound_to = context(manifest=manifest, attempt=attempt, sender=sender)
    links = {levels[-1]: link}
    for above, level in pairwise(reversed(levels)):
        links[level] = derive(links[above], LINK_LABEL + bound_to + level.to_bytes(4, "little"))
    layer_keys = {
        level: derive(links[level], LAYER_LABEL + bound_to + level.to_bytes(4, "little")) for level in levels[1:]
    }
    return links, layer_keys


def shown_layer_keys(
    parameters: SecaggParameters, *, survivors: Collection[str], attempt: int, sender: str, link: str, end: str
) -> dict[int, bytes]:
    """The keys, by level, of the layers of the noise of ``sender`` that come off where these are the ``survivors``.

    ``link`` is what the site showed and ``end`` what it advertised, in hex. Empty where one does not lead to the other.
    """
    levels = parameters.levels_reached(survivors)
    links, layer_keys = noise_chain(
        bytes.fromhex(link), levels, manifest=parameters.manifest, attempt=attempt, sender=sender
    )
    return layer_keys if links[parameters.threshold].hex() == end else {}
