"""What a user can do with a guest: typed functions that take and return values, and print nothing."""
