-- KEYS: the prefixes of tokens', users' and ledgers' keys, the token's hash, and the user's set if the user is known
-- ARGV: digest, room, the user or nothing, the epoch, milliseconds that the ledger lives at least, milliseconds that an
--       answer may take
-- Answers with the time, and the yes that is valid, but perhaps not fresh; with a third word where there is one that
-- cannot be read.
local tokens, users, ledgers, token = unpack(KEYS)
local digest, room, user, epoch, memory, wait = unpack(ARGV)

-- When an answer can no longer be used, or a note can no longer be about a check under way: in microseconds, or nothing.
local function ends(text)
    local readable, known = pcall(cjson.decode, text)
    if not readable or type(known) ~= 'table' then
        return nil
    elseif type(known.freshUntil) == 'number' then
        return known.freshUntil * 1000000
    end
    return not known.userId and type(known.askedAt) == 'number' and known.askedAt
end

-- A denial leaves its note, a room that nobody asks for any more its answer, and the hash of a token that is in use never
-- expires: with each new field of a large hash some old ones are removed, so that of each four at most one is old.
local function forget_some()
    local sample = redis.call('HRANDFIELD', token, 4, 'WITHVALUES')
    for i = 1, #sample, 2 do
        local over = sample[i] ~= room and ends(sample[i + 1])
        if over and over + tonumber(memory) * 1000 < now then
            redis.call('HDEL', token, sample[i])
        end
    end
end

local answer = redis.call('HGET', token, room)
local known, unreadable = {}
if answer then
    local readable, grant = pcall(cjson.decode, answer)
    if readable and type(grant) == 'table' and (type(grant.userId) == 'string' or type(grant.askedAt) == 'number') then
        known = grant
    else
        unreadable = 1
    end
end
if type(known.userId) == 'string' then
    user = known.userId
end
local valid = type(known.userId) == 'string' and redis.call('SISMEMBER', users .. user, digest) == 1
local standing = known.epoch == epoch and type(known.askedAt) == 'number' and known.askedAt <= now
if valid and standing and type(known.freshUntil) == 'number' and known.freshUntil * 1000000 > now then
    return {text(now), answer}
end
if user ~= '' and not valid then
    revoked(ledgers .. user, users .. user, tokens, digest, now, tonumber(memory))
end
-- While the auth service is asked something stands in the token's hash: whoever deletes it has the answer rejected.
-- An old answer does as well as a note of the time. Redis may refuse to write: the answer is not stored then.
-- What replaces an answer says so, or others would take that for deleted.
if not standing or redis.call('HEXISTS', token, room) == 0 then
    local replaced = (valid or known.replaced) and ',"replaced":true' or ''
    local note = cjson.encode({epoch = epoch}):sub(1, -2) .. ',"askedAt":' .. text(now) .. replaced .. '}'
    if redis.pcall('HSET', token, room, note) == 1 and redis.call('HLEN', token) > 100 then
        forget_some()
    end
end
if redis.call('PTTL', token) < tonumber(wait) then
    redis.pcall('PEXPIRE', token, wait)
end
-- Read again: what this connection wrote is no longer tracked.
redis.call('EXISTS', token, KEYS[5] or token)
return {text(now), valid and answer, unreadable}
