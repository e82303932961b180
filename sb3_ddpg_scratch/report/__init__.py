"""What the HTML pages of this package share: templates, figures, theme and number formatting."""
