"""The work of a job, as sites see it: leased, kept alive, answered."""
