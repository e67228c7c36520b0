-- KEYS: the services that have registered themselves, until when each stands. ARGV: how many are wanted at most.
-- Returns those that stand: the name, the registration, and the milliseconds that are left.
local found = {}
local milliseconds = math.floor(now / 1000)
keep_type('hash', KEYS[1])
keep_type('zset', KEYS[2])
local standing = redis.call('ZRANGEBYSCORE', KEYS[2], milliseconds, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[1])
for i = 1, #standing, 2 do
    local registration = redis.call('HGET', KEYS[1], standing[i])
    if registration then
        found[#found + 1] = {standing[i], registration, math.floor(standing[i + 1] - milliseconds)}
    end
end
return found
