-- KEYS: the key of the stream's lease, the stream. ARGV: the lease that share.lua gave, the group, this instance, where to
-- look for pending entries ('' when all of them were found), how many entries at most.
-- Takes over what the instances before this one have left unfinished, in order, and then reads on. Returns where to go on
-- looking, the entries, {id, fields, how often it was delivered} of each, and if there is none the id to continue from;
-- nothing when that lease is over, as after this instance was paused for a while.
local stream, lease, group, me, from, most = KEYS[2], unpack(ARGV)
if redis.call('GET', KEYS[1]) ~= lease then return {} end
local entries = {}
if from ~= '' then
    local pending = redis.call('XPENDING', stream, group, from, '+', most)
    for _, found in ipairs(pending) do
        local id, delivered = found[1], found[4]
        local entry = redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', delivered)[1]
        if entry then
            entries[#entries + 1] = {id, entry[2], delivered}
        else
            redis.call('XACK', stream, group, id) -- it was trimmed
        end
        from = '(' .. id
    end
    return {#pending < tonumber(most) and '' or from, entries}
end
local read = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', most, 'STREAMS', stream, '>')
if read then
    for _, entry in ipairs(read[1][2]) do entries[#entries + 1] = {entry[1], entry[2], 1} end
    return {'', entries}
end
for _, reply in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    local known = fields(reply)
    if known.name == group then return {'', entries, known['last-delivered-id']} end
end
