"""Networks: one file per box of the papers' figures."""
