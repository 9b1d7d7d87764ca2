"""What keeps database and store together: references, garbage collection, reconciling, backup and restore."""
