"""A study's claims, recomputed from its folder alone."""
