"""What a study begins with, and what it will promise and cost, before a record is read."""
