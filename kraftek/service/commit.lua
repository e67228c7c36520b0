-- An entry acknowledged out of order would count as waiting until all earlier ones are acknowledged: if the stream has
-- no other group it is removed at once. (Removing every entry costs Redis 8 µs each; the gateway trims those in order.)
local at, receivers = 3, 0
while ARGV[at] do
    local last = at + 1 + tonumber(ARGV[at + 1])
    if ARGV[at] == 'always' or ARGV[at] == 'unheard' and receivers == 0 then
        receivers = redis.call(unpack(ARGV, at + 2, last))
    end
    at = last + 1
end
if stream then
    redis.call('XACK', stream, ARGV[1], ARGV[2])
    local behind = #redis.call('XPENDING', stream, ARGV[1], '-', ARGV[2], 1) > 0
    if behind and #redis.call('XINFO', 'GROUPS', stream) == 1 then redis.call('XDEL', stream, ARGV[2]) end
end
return 1
