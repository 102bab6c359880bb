"""Facts about a recurrence, each with its evidence."""
