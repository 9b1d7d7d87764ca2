"""What the site decides: its policy, what a person is asked, and the account of what was spent."""
