-- trim(stream): removes the entries that every group has handled, and returns how many entries wait.
local function smaller(one, other)
    local ms, seq = one:match('(%d+)-(%d+)')
    local other_ms, other_seq = other:match('(%d+)-(%d+)')
    if ms == other_ms then return tonumber(seq) < tonumber(other_seq) end
    return tonumber(ms) < tonumber(other_ms)
end

local function trim(stream)
    local unhandled
    for _, reply in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
        local group = fields(reply)
        local first
        if group.pending > 0 then
            first = redis.call('XPENDING', stream, group.name)[2]
        else
            local ms, seq = group['last-delivered-id']:match('(%d+)-(%d+)')
            first = string.format('%s-%d', ms, seq + 1)
        end
        if not unhandled or smaller(first, unhandled) then unhandled = first end
    end
    if unhandled then redis.call('XTRIM', stream, 'MINID', unhandled) end
    return redis.call('XLEN', stream)
end
