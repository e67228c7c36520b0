"""HTTP: the public port's plain requests, and questions to the auth service. The only place with twisted.web."""
