-- KEYS: the token's hash, the user's set, the ledger
-- ARGV: digest, room, answer, milliseconds to store it, time of the look-up before the check,
--       milliseconds that the ledger lives at least, how many rooms a token may have answers for
-- Answers with 1, or with 0 if access was revoked since or a later answer is there, or with 2 if there are too many.
local token, user, ledger = unpack(KEYS)
local digest, room, answer, keep, asked, memory, most = unpack(ARGV)
local tokens = token:sub(1, #token - #digest)
keep, asked, memory = tonumber(keep), tonumber(asked), tonumber(memory)

-- Whether what the look-up left, or found, has been deleted or replaced since.
local function replaced()
    local standing = redis.call('HGET', token, room)
    if not standing then
        return true
    end
    local readable, known = pcall(cjson.decode, standing)
    return readable and type(known) == 'table' and type(known.askedAt) == 'number' and known.askedAt > asked
end

-- What the token's hash holds for another user, or from before the user's set was deleted, is not valid, and must not
-- become valid again. Other checks may be under way.
local function forget_answers()
    local fields = redis.call('HGETALL', token)
    for i = 1, #fields, 2 do
        local readable, known = pcall(cjson.decode, fields[i + 1])
        if not readable or type(known) ~= 'table' or known.userId then
            redis.call('HDEL', token, fields[i])
        end
    end
end

local function store()
    if revoked(ledger, user, tokens, digest, asked, memory) > asked or replaced() then
        return 0
    end
    local many = redis.call('HLEN', token) > tonumber(most)
    if keep == 0 or many then
        redis.call('HDEL', token, room)
        return many and 2 or 1
    end
    if redis.call('SISMEMBER', user, digest) == 0 then
        forget_answers()
    end
    redis.call('HSET', token, room, answer)
    local new = redis.call('SADD', user, digest)
    -- They outlive their answers, so that who asks again in time finds them.
    for field, key in pairs({[digest] = token, user = user}) do
        extend(key, keep + memory)
        -- In whole milliseconds, rounded up, so that no deletion looks like an expiry.
        redis.call('HSET', ledger, field, text(now + (redis.call('PTTL', key) + 1) * 1000))
    end
    extend(ledger, keep + 2 * memory)
    if new == 1 then
        -- The keys of a user who always comes back never expire: remove some old tokens with each new one.
        local sample = redis.call('HRANDFIELD', ledger, 4, 'WITHVALUES')
        for i = 1, #sample, 2 do
            if #sample[i] == #digest and tonumber(sample[i + 1]) + memory * 1000 < now then
                redis.call('HDEL', ledger, sample[i])
                redis.call('SREM', user, sample[i])
            end
        end
    end
    return 1
end

local done = store()
-- Read again: what this connection wrote is no longer tracked.
redis.call('EXISTS', token, user)
return done
