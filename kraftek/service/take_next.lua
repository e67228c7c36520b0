-- KEYS: the partition's lease, its stream. ARGV: the group, this instance.
-- Returns {id, fields, how often it was delivered by now} of the next entry; the id to continue reading from when there
-- is none; and nothing when this instance does not hold the lease, as after it was paused for a while.
local lease, stream, group, me = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
if redis.call('GET', lease) ~= me then return {} end
local left = redis.call('XPENDING', stream, group, '-', '+', 1)[1]
while left do
    local entry = claimed(stream, group, me, 0, left[1])
    if entry then return {entry[1], entry[2], left[4] + 1} end
    left = redis.call('XPENDING', stream, group, '-', '+', 1)[1]
end
local read = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', 1, 'STREAMS', stream, '>')
if read then
    local entry = read[1][2][1]
    return {entry[1], entry[2], 1}
end
for _, reply in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local known = fields(reply)
    if known.name == group then return {known['last-delivered-id']} end
end
