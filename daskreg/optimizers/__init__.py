"""Steps and when to stop."""
