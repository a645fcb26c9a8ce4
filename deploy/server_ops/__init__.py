"""What the server's operator does: enroll, bundle, start, run; and the programs that this starts."""
