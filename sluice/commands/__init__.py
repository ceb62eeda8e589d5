"""What a person types who uses the control plane over REST: a module a command, `terminal` for what they share."""
