"""Whatever steps environments, as rows of true transitions."""
