"""What takes longer than the tests may: fuzzing, kills, comparisons."""
