-- KEYS: the leases, what gateways publish about services. ARGV: the gateway's id, the lease in seconds, what it publishes.
-- Returns 1 if the lease was still there, and 0 if another gateway presumed this one dead; and how many leases there are.
-- What gateways without a lease have published is removed, and all of it when nobody has a lease any more.
local known = redis.call('ZSCORE', KEYS[1], ARGV[1])
redis.call('ZADD', KEYS[1], now / 1000000 + ARGV[2], ARGV[1])
keep_type('hash', KEYS[2])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[2] * 1000)
for _, gateway in ipairs(redis.call('HKEYS', KEYS[2])) do
    if not redis.call('ZSCORE', KEYS[1], gateway) then redis.call('HDEL', KEYS[2], gateway) end
end
return {known and 1 or 0, redis.call('ZCARD', KEYS[1])}
