-- KEYS: the prefixes of tokens', users' and ledgers' keys
-- ARGV: digest, room, the token's user when last known or nothing, milliseconds that the ledger lives at least
local tokens, users, ledgers, digest, user = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[3]
-- Answers with the time, and the yes that counts; with a third word where there is one that cannot be read.
local answer = redis.call('HGET', tokens .. digest, ARGV[2])
local unreadable
if answer then
    local readable, grant = pcall(cjson.decode, answer)
    if readable and type(grant) == 'table' and type(grant.userId) == 'string' then
        user = grant.userId
        if redis.call('SISMEMBER', users .. user, digest) == 1 then
            return {text(now), answer}
        end
    else
        unreadable = 1
    end
end
if user ~= '' then
    revoked(ledgers .. user, users .. user, tokens, digest, now, tonumber(ARGV[4]))
end
return {text(now), false, unreadable}
