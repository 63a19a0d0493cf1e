"""Values, files, streams and copies: helpers that know nothing of learning."""
