"""Models that parties publish, and their revisions."""
