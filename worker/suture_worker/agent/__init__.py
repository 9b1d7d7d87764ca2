"""The agent's process: the only one that holds the site's token and talks to the hub, and never touches data."""
