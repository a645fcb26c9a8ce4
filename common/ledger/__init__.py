"""The signed chain of all that a study released, and its replay, which refuses what no honest study contains."""
