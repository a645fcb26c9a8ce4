"""What both ends of a study believe: its rooms know neither Flower nor which side they run on."""
