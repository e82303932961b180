"""Benchmarks: our updaters, SB3's and SBX's DDPG on one machine, and the bare matrix products as a lower bound on time."""
