"""One training with its evaluations and result file; many of them, in processes or on Ray."""
