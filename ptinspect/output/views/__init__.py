"""Values of the packages below, as reports; they are imported for their types only."""
