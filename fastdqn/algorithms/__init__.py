"""Pure equations that know no network."""
