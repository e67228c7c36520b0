-- KEYS: the leases, the set of lost entries, the time of the last look, the beginning of the keys of gateways' entries.
-- ARGV: the lease in seconds, after how many seconds without a look Redis was away for all, how many entries at most.
-- Takes gateways whose lease ran out for lost; answers with some of the entries that they left.
-- After an outage all leases have run out, and whoever comes back first would sweep all others.
local gateways, lost, looked, prefix = unpack(KEYS)
local lease, outage, most = unpack(ARGV)
local seconds = now / 1000000
keep_type('string', looked)
keep_type('set', lost)
local before = tonumber(redis.call('GET', looked) or 0) or 0
-- Where Redis's clock was set back, no lease is longer than a whole one for that.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', gateways, seconds + lease, '+inf')) do
    redis.call('ZADD', gateways, seconds + lease, id)
end
redis.call('SET', looked, string.format('%.6f', seconds))
for _, id in ipairs(redis.call('ZRANGEBYSCORE', gateways, '-inf', seconds)) do
    if seconds - before > tonumber(outage) then
        redis.call('ZADD', gateways, seconds + lease, id)
    else
        local entries = prefix .. id .. ':entries'
        keep_type('set', entries)
        redis.call('SUNIONSTORE', lost, lost, entries)
        redis.call('DEL', entries)
        redis.call('ZREM', gateways, id)
    end
end
return redis.call('SRANDMEMBER', lost, most)
