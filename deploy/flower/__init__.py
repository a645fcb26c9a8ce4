"""What Flower loads: the two apps, their archive, and its own simulation."""
