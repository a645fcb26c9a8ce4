"""Programs in processes of their own, and what kills them."""
