"""Cohorts, opponents and a reference for secure aggregation."""
