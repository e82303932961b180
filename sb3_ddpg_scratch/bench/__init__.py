"""Speed: our updaters, SB3's DDPG and SBX's on one machine, and the floor of the matrix products."""
