"""Studies, sites and models that are small enough to run in a test."""
