"""A site's folder, and how its worker comes out of it."""
