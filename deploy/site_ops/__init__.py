"""What a hospital's operator does: join, check, start, fetch."""
