"""Training in environments that live on the device."""
