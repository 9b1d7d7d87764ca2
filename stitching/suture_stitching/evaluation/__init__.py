"""What candidates are worth on one party's data, and which one to use."""
