"""What runs at the aggregation server: rounds, the central accountant, the report, one study's run."""
