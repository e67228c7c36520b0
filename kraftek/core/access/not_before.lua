-- KEYS: when a user's tokens were revoked, and the user's set in the access cache
-- ARGV: the room, or nothing for all; the time in Unix seconds; milliseconds to keep it; the time before which none
--       matters any more; 1 if it was to be there
-- Whoever was let in while it was not there is asked about again.
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
if ARGV[5] == '1' and redis.call('HGET', key, room) ~= at then redis.call('DEL', KEYS[2]) end
redis.call('HSET', key, room, at)
if redis.call('PTTL', key) < keep then
    redis.call('PEXPIRE', key, keep)
end
