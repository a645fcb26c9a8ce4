"""Records and their tokens: the only code that reads records, at a site and of an evaluation set."""
