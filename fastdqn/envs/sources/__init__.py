"""Sources of experience: anything that steps environments, as rows of true transitions."""
