"""What both sides of a study share: manifest, messages, privacy and protocol. Nothing here knows Flower."""
