"""The best network for a budget of milliseconds: several ways to spend it, trained, timed and compared."""
