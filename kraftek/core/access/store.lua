-- KEYS: the beginning of tokens' keys, the user's set, the ledger
-- ARGV: digest, room, answer, milliseconds that it may be kept, time of the look before the question,
--       milliseconds that the ledger lives at least
local tokens, user, ledger, digest = KEYS[1], KEYS[2], KEYS[3], ARGV[1]
local token = tokens .. digest
local keep, asked, memory = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
if taken(ledger, user, tokens, digest, asked, memory) > asked then
    return 0
end
if keep == 0 then
    return 1
end
if redis.call('SISMEMBER', user, digest) == 0 then
    -- Whatever the token's hash still holds does not count: it must not by this.
    redis.call('DEL', token)
end
redis.call('HSET', token, ARGV[2], ARGV[3])
local new = redis.call('SADD', user, digest)
-- A second more: when a key expires, what was in it has run out.
for field, key in pairs({[digest] = token, user = user}) do
    extend(key, keep + 1000)
    -- In whole milliseconds, rounded up: no deletion is to look like an expiry.
    redis.call('HSET', ledger, field, text(now + (redis.call('PTTL', key) + 1) * 1000))
end
extend(ledger, keep + 1000 + memory)
if new == 1 then
    -- Who is never away never expires: forget some of the user's old tokens with each new one.
    local sample = redis.call('HRANDFIELD', ledger, 4, 'WITHVALUES')
    for i = 1, #sample, 2 do
        if #sample[i] == #digest and tonumber(sample[i + 1]) + memory * 1000 < now then
            redis.call('HDEL', ledger, sample[i])
            redis.call('SREM', user, sample[i])
        end
    end
end
return 1
