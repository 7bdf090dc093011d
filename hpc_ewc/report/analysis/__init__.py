"""Values, differences and their uncertainty: statistics of a study."""
