"""Q-networks, and any module as a pure function of one flat vector."""
