"""Shared by this package's HTML pages: templates, figures, theme and number formatting."""
