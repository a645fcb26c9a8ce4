"""What runs at a site: the only code that reads records."""
