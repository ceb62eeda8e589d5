"""What is known of answers afterwards: how many were right, and whether bundles keep what they promised."""
