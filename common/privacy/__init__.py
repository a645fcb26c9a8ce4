"""The mechanism that adds noise, and the accountant that says what its releases cost."""
