"""The program that has the network and sees no record: Flower's SuperNode, and the relay to the worker's socket."""
