"""The words of the report that a privacy officer may meet for the first time, in the order in which they build up."""

from typing import Final

_STUDY: Final = {
    "Study, site, server": "One training run over several institutions. A site is one of them, and keeps its records. "
    "The server adds up what the sites send, and reads no record.",
    "Manifest": "Every parameter of the study with all keys, as one document that each site checked and signed.",
    "Ledger": "The signed list of all that the study did and released. Each entry has the hash of the one before it.",
    "Base model, adapter": "The language model that was there before, and the small addition that the study trained.",
    "Round, attempt": "A step of the adapter, and one try at it: a round in which too many sites dropped out is tried "
    "again.",
    "Secure aggregation": "The server sees the sum of the sites’ updates, and no update of one site.",
    "Perplexity": "How surprised a model is by text it has not seen; lower is better, and 1 is no surprise at all.",
}
_PRIVACY: Final = {
    "Differential privacy": "Whoever is looking cannot tell well whether any one person was in the data: what they see "
    "is nearly as likely without that person. It is random noise that makes it so.",
    "ε (epsilon)": "How far “nearly” goes: whatever is seen is at most e to the power of ε times as likely with the "
    "person as without. Smaller is stronger; 0 would reveal nothing.",
    "δ (delta)": "A small probability that is added to that: the part which ε does not bound.",
    "Privacy unit": "What one presence means: a patient with all records, or a single record.",
    "Clipping, noise multiplier": "What one person can change in a step is cut to a fixed size; the noise is so many "
    "times as large.",
    "Distributed, local trust": "Sites add shares of the noise, and secure aggregation hides the rest; or each site "
    "adds all of it before anything leaves.",
    "Privacy budget": "The most that all studies together may reveal about a patient of a site. A study that asks for "
    "more than is left is refused.",
}


def glossary(*, private: bool) -> dict[str, str]:
    """Terms with what they mean; those of privacy only where there is any."""
    return _STUDY | _PRIVACY if private else _STUDY
