"""DQN: the parts behind five calls, how they learn, and how they are saved and loaded."""
