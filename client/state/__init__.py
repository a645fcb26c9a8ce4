"""What a site's worker has on disk before it answers: serials, charges and its copy of the ledger."""
