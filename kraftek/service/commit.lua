-- KEYS: the stream, or nothing for an event that came over Pub/Sub. ARGV: the group, the entry's id; then for each
-- command when it is sent ('always', or only when nobody heard the one before), how many words it has, and these.
-- Sends the commands and acknowledges the entry, if it is still pending. Answers with 1, or 0 where it is not.
-- What was handled behind one that is still in hand would count as waiting until that is done: where nobody else reads
-- the stream it is removed at once. (Removing all of them costs Redis 8 µs each; what is in order the gateway trims.)
local stream, at, heard = KEYS[1], 3, 0
if stream then
    local pending = redis.pcall('XPENDING', stream, ARGV[1], ARGV[2], ARGV[2], 1)
    if pending.err or #pending == 0 then return 0 end
end
while ARGV[at] do
    local last = at + 1 + tonumber(ARGV[at + 1])
    if ARGV[at] == 'always' or heard == 0 then heard = redis.call(unpack(ARGV, at + 2, last)) end
    at = last + 1
end
if stream then
    redis.call('XACK', stream, ARGV[1], ARGV[2])
    local behind = #redis.call('XPENDING', stream, ARGV[1], '-', ARGV[2], 1) > 0
    if behind and #redis.call('XINFO', 'GROUPS', stream) == 1 then redis.call('XDEL', stream, ARGV[2]) end
end
return 1
