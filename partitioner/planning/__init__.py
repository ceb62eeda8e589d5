"""What could be done, measured; and what is best, chosen from all of it."""
