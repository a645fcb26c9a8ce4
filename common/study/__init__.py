"""A study as people write it, what follows from it, and the manifest that its sites sign."""
