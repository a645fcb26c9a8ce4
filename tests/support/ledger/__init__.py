"""Ledgers that tell a story, and ledgers that lie."""
