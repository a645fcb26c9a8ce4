"""What a site allows and what its patients have left: policy, amounts, reservations. Reads no record."""
