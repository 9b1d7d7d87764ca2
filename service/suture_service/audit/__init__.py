"""Who did what, when and from where: append-only, each entry chained to the one before."""
