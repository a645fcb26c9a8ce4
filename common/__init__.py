"""What both sides of a study share: its manifest, its messages, its privacy and its protocol. Nothing here knows Flower."""
