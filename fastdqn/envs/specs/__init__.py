"""From an id, arguments and wrappers to an environment that can be made again."""
