"""What both ends say to each other: signed envelopes and the messages in them. No state, no network."""
