"""What a study's ledger supports, as a claim, as report.json, as a page and as the adapter's card."""
