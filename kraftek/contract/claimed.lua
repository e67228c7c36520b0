-- claimed(...): claims the entry for this consumer and returns it. An entry that was trimmed while it was pending no
-- longer exists: it is acknowledged, and nil is returned.
local function claimed(stream, group, consumer, idle, id)
    local entry = redis.call('XCLAIM', stream, group, consumer, idle, id)[1]
    if not entry then redis.call('XACK', stream, group, id) end
    return entry
end
