"""The Hugging Face Hub's protocol, so that its official client and command line work with this hub unmodified."""
