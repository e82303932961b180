"""Holding ScratchDDPG against SB3's algorithms."""
