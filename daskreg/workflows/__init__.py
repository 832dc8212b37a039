"""What a user asks for: one verb, one file."""
