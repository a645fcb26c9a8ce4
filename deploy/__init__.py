"""What a person types, and what puts the pieces together."""
