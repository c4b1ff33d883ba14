"""Which mesh to rent, before renting it: what a step is, what it has to send, what it does send."""
