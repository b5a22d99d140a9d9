"""Figures, and later tables, of finished runs."""
