-- claimed(...): the entry, once it is this consumer's. One that was trimmed away while it was pending is nobody's any
-- more: it is acknowledged, and nil comes back.
local function claimed(stream, group, consumer, idle, id)
    local entry = redis.call('XCLAIM', stream, group, consumer, idle, id)[1]
    if not entry then redis.call('XACK', stream, group, id) end
    return entry
end
