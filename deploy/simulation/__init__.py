"""A whole federation on one machine: real messages, keys and sums; only the network is missing."""
