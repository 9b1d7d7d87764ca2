"""What happens to a published revision: it is signed afterwards, or taken back."""
