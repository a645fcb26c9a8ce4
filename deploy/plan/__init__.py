"""What a study will promise and cost, before a record is read."""
