"""What collects the pages into a site, and draws the one picture among them."""
