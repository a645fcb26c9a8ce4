"""Attacks on a finished adapter before it is released: what it tells of whom it was trained on, told to nobody else."""
