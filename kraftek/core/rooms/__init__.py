"""The room cache that services read in Redis, and the leases by which dead gateways are cleaned up."""
