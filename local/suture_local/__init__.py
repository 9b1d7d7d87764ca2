"""A hub and sites on one machine: `suture up` and `suture demo`."""
