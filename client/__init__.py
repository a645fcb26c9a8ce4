"""What runs at a site: the worker sees records and has no network, the node has the network and sees no record."""
