"""Values, files, streams and copies: what every room stands on."""
