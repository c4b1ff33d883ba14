"""Which mesh to rent, before renting it: what every kind of parallelism has to send."""
