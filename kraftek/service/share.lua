-- KEYS: the instances, the leases of all partitions. ARGV: this instance, milliseconds that its leases last, '1' if it
-- leaves. Returns how many partitions are its share; those that it holds, each with its number, from 0, and its lease; and
-- all instances.
-- A lease has the time since when it is held: who has lost it, and has it again, knows that another one may have read
-- entries meanwhile.
-- All instances sort the names, and so see the same order: the first ones take the remainder of the division. A single
-- lease stays where it is.
local me, ttl, leaving = ARGV[1], tonumber(ARGV[2]), ARGV[3] == '1'
local milliseconds = math.floor(now / 1000)
redis.call('ZADD', KEYS[1], milliseconds + ttl, me)
if leaving then redis.call('ZREM', KEYS[1], me) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', milliseconds)
local share, all = 0, redis.call('ZRANGE', KEYS[1], 0, -1)
if not leaving then
    local leases = #KEYS - 1
    table.sort(all)
    share = math.floor(leases / #all)
    for rank = 1, leases % #all do
        if all[rank] == me or leases == 1 then share = share + 1 end
    end
end
local held = {}
for i = 2, #KEYS do
    local lease = redis.call('GET', KEYS[i])
    if lease and lease:sub(1, #me + 1) == me .. ' ' then
        redis.call('PEXPIRE', KEYS[i], ttl)
        held[#held + 1] = {i - 2, lease}
    end
end
for i = 2, #KEYS do
    local lease = me .. ' ' .. text(now)
    if #held < share and redis.call('SET', KEYS[i], lease, 'NX', 'PX', ttl) then held[#held + 1] = {i - 2, lease} end
end
return {share, held, all}
