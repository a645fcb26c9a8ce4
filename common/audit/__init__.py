"""What an audit found: the scores of canaries, and the lower bounds on ε that follow from them alone."""
