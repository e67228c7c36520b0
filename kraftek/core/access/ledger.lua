-- The ledger of a user: when answers were kept, when they run out, and when something was last found taken away.
local function extend(key, milliseconds)
    if redis.call('PTTL', key) < milliseconds then
        redis.call('PEXPIRE', key, milliseconds)
    end
end

-- taken(...): when something of this user was last found missing, as far as it matters to a question of that time; it
-- looks for it first. A key whose time has run out since may have expired or have been deleted before: that counts as
-- missing, too. What a missing set leaves behind is removed, so that a later answer about the same token does not bring
-- it back.
local function taken(ledger, user, tokens, digest, asked, memory)
    local at, set, hash = unpack(redis.call('HMGET', ledger, 'taken', 'user', digest))
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
        return tonumber(at or 0)
    end
    redis.call('HSET', ledger, 'taken', text(now))
    extend(ledger, memory)
    return now
end
