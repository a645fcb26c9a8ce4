"""A twin of a study with planted canaries and faults, and what can be seen of them."""
