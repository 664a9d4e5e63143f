"""What `scripts/reproduce-claims` is made of: arms, their runs, how two arms are compared, and the page of figures."""
