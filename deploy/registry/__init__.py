"""Releases of finished adapters: who has which, what they cost, what became of them, and whether they still serve."""
