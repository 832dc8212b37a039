"""Other registration programs, run in environments of their own, and measured as daskreg is."""
