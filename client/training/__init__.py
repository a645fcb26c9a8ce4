"""From a site's records to its update: draw, gradients, clipping, integers, noise. No network, no keys."""
