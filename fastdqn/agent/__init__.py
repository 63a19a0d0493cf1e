"""DQN, how it learns, and how it is saved and loaded."""
