-- KEYS: when a user's tokens were revoked
-- ARGV: the room, or nothing for all; the time in Unix seconds; milliseconds to keep it; the time before which none
--       matters any more
local key, room, at, keep, horizon = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
keep_type('hash', key)
local fields = redis.call('HGETALL', key)
for i = 1, #fields, 2 do
    if fields[i] == room and (tonumber(fields[i + 1]) or 0) > tonumber(at) then
        at = fields[i + 1]
    elseif (tonumber(fields[i + 1]) or 0) < horizon then
        redis.call('HDEL', key, fields[i])
    end
end
redis.call('HSET', key, room, at)
if redis.call('PTTL', key) < keep then
    redis.call('PEXPIRE', key, keep)
end
