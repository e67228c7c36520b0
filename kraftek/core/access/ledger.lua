-- The ledger of a user: when the cached answers expire, when one of them was last found deleted (`taken`), and when one
-- room was last invalidated (`cleared`): of that no gateway concludes anything about other rooms.
local function extend(key, milliseconds)
    if redis.call('PTTL', key) < milliseconds then
        redis.call('PEXPIRE', key, milliseconds)
    end
end

-- revoked(...): when something of this user was last found missing, as far as it matters to a check that began at
-- `asked`; it looks for missing keys first. A key whose time is over may have expired or have been deleted before that:
-- it counts as missing, too. What a missing set leaves behind is removed, so that a later answer about the same token
-- does not make it valid again.
local function revoked(ledger, user, tokens, digest, asked, memory)
    local at, cleared, set, hash = unpack(redis.call('HMGET', ledger, 'taken', 'cleared', 'user', digest))
    if set and tonumber(set) > asked and redis.call('EXISTS', user) == 0 then
        for _, field in ipairs(redis.call('HKEYS', ledger)) do
            if #field == #digest then
                redis.call('DEL', tokens .. field)
            end
        end
        redis.call('DEL', ledger)
    elseif hash and tonumber(hash) > asked
            and (redis.call('EXISTS', tokens .. digest) == 0 or redis.call('SISMEMBER', user, digest) == 0) then
        redis.call('DEL', tokens .. digest)
        redis.call('HDEL', ledger, digest)
    else
        return math.max(tonumber(at or 0), tonumber(cleared or 0))
    end
    redis.call('HSET', ledger, 'taken', text(now))
    extend(ledger, memory)
    return now
end
