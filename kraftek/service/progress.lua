-- KEYS: the stream of the parts of an answer. ARGV: the run of the handler, the number of the part, its payload, what its
-- gateway is told and on which channel, how many bytes are kept, for how many milliseconds, and whether another run is
-- over: over Pub/Sub every instance has the request, and the first that says something goes on.
-- Returns whether it was taken. The last part is kept, however large it is. Redis needs 40 bytes for a part besides.
local key, run, number, payload = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local function size(text) return #text + 40 end

local total = size(payload)
local last = redis.call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
if last and last[2][2] ~= run then
    if ARGV[8] == '0' then return 0 end
    redis.call('DEL', key)
    last = nil
end
if last then total = total + last[1]:match('%-(%d+)$') end
local id = string.format('%s-%.0f', number, total)
redis.call('XADD', key, id, 'run', run, 'part', payload)
while true do
    local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
    local kept = total - first[1]:match('%-(%d+)$') + size(first[2][4])
    if kept <= tonumber(ARGV[6]) or first[1] == id then break end
    redis.call('XDEL', key, first[1])
end
redis.call('PEXPIRE', key, ARGV[7])
redis.call('PUBLISH', ARGV[5], ARGV[4])
return 1
