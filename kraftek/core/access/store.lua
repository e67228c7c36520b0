-- KEYS: the prefix of tokens' keys, the user's set, the ledger
-- ARGV: digest, room, answer, milliseconds to store it, time of the look-up before the check,
--       milliseconds that the ledger lives at least
local tokens, user, ledger, digest = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local token = tokens .. digest
local keep, asked, memory = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if revoked(ledger, user, tokens, digest, asked, memory) > asked then
    return 0
end
if keep == 0 then
    return 1
end
if redis.call('SISMEMBER', user, digest) == 0 then
    -- What the token's hash still holds is no longer valid, and must not become valid again.
    redis.call('DEL', token)
end
redis.call('HSET', token, ARGV[2], ARGV[3])
local new = redis.call('SADD', user, digest)
-- A second more, so that a key expires after the answers in it.
for field, key in pairs({[digest] = token, user = user}) do
    extend(key, keep + 1000)
    -- In whole milliseconds, rounded up, so that no deletion looks like an expiry.
    redis.call('HSET', ledger, field, text(now + (redis.call('PTTL', key) + 1) * 1000))
end
extend(ledger, keep + 1000 + memory)
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
