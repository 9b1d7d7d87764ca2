"""From moments to stitches: closed forms, refinement, and the candidates made of them."""
