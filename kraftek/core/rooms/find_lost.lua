-- KEYS: the leases, the set of lost entries, the time of the last look, the prefix of the keys of gateways' entries.
-- ARGV: the lease in seconds, the seconds without a look that mean an outage of Redis for all, the most entries to return.
-- Moves the entries of gateways whose lease has expired to the set of lost entries, and returns some of that set.
-- After an outage leases have expired, or do so before their holders have reconnected, and the first gateway to do that would
-- remove all others' entries: all of them have a whole lease once more.
local gateways, lost, looked, prefix = unpack(KEYS)
local lease, outage, most = unpack(ARGV)
local seconds = now / 1000000
keep_type('string', looked)
keep_type('set', lost)
local before = tonumber(redis.call('GET', looked) or 0) or 0
local away = seconds - before > tonumber(outage)
-- After Redis's clock was set back no lease lasts longer than a whole one.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', gateways, away and '-inf' or seconds + lease, '+inf')) do
    redis.call('ZADD', gateways, seconds + lease, id)
end
redis.call('SET', looked, string.format('%.6f', seconds))
for _, id in ipairs(redis.call('ZRANGEBYSCORE', gateways, '-inf', seconds)) do
    local entries = prefix .. id .. ':entries'
    keep_type('set', entries)
    redis.call('SUNIONSTORE', lost, lost, entries)
    redis.call('DEL', entries)
    redis.call('ZREM', gateways, id)
end
return redis.call('SRANDMEMBER', lost, most)
