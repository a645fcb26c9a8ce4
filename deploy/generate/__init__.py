"""Synthetic notes from a finished adapter, with its claim; and how near they come to a site's own records."""
