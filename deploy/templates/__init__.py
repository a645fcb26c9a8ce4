"""Files that the commands fill in: example studies, the report's page."""
