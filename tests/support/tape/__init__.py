"""Neighbours on one tape: two runs that differ in one unit and draw the same, and all that differs between them."""
