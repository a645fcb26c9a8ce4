"""Installation without a network: wheels, hashes, and a list of what they consist of."""
