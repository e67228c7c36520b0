-- KEYS: the stream of the parts of an answer. ARGV: the run of the handler, the number of the part, its payload, what its
-- gateway is told and on which channel, how many bytes are kept, for how many milliseconds, and whether another run is
-- over: over Pub/Sub every instance has the request, and the first that says something goes on.
-- Returns whether it was taken.
local key, run, number, payload = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local total = #payload
local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
if last and last[2][2] ~= run then
    if ARGV[8] == '0' then return 0 end
    redis.call('DEL', key)
    last = nil
end
if last then total = total + last[1]:match('%-(%d+)$') end
redis.call('XADD', key, string.format('%s-%.0f', number, total), 'run', run, 'part', payload)
while true do
    local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1][1]
    if total - first:match('%-(%d+)$') < tonumber(ARGV[6]) then break end
    redis.call('XDEL', key, first)
end
redis.call('PEXPIRE', key, ARGV[7])
redis.call('PUBLISH', ARGV[5], ARGV[4])
return 1
