"""Mean squared difference."""
