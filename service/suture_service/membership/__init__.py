"""What becomes of a party or a site that is suspended, resumed, renamed or removed, and what a party may fill."""
