"""Pages: what every report of this package shares, from its style and colours to the words for numbers."""
