-- KEYS: the leases. ARGV: the gateway's id, the lease in seconds.
-- Returns 1 if the lease was still there, and 0 if another gateway presumed this one dead; and how many leases there are.
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now / 1000000 + ARGV[2], ARGV[1])
return {known and 1 or 0, redis.call('ZCARD', KEYS[1])}
