"""Where records come from: files, exports and databases, read row by row. Nothing of tokens or of what they mean."""
