"""One training run with its evaluations and result file; and many of them, in processes or on Ray."""
