"""``python -m sb3_ddpg_scratch`` is the command ``sb3-ddpg-scratch``."""

from sb3_ddpg_scratch.cli import main

main()
