"""How a server and its sites come to know each other: certificates, node keys, and the study as sites get it."""
