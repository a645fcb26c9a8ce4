"""The program that sees records and has no network: it answers signed requests at a unix socket."""
