"""Short programs to copy from, which use the package as anyone would; a test runs each of them."""
