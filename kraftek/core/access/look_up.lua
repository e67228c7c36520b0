-- KEYS: the beginnings of tokens', users' and ledgers' keys
-- ARGV: digest, room, the user who it was last time or nothing, milliseconds that the ledger lives at least
local tokens, users, ledgers, digest, user = KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[3]
-- Answers with the time, and the yes that counts; with a third word where there is one that cannot be read.
local answer = redis.call('HGET', tokens .. digest, ARGV[2])
local unreadable
if answer then
    local readable, yes = pcall(cjson.decode, answer)
    if readable and type(yes) == 'table' and type(yes.userId) == 'string' then
        user = yes.userId
        if redis.call('SISMEMBER', users .. user, digest) == 1 then
            return {text(now), answer}
        end
    else
        unreadable = 1
    end
end
if user ~= '' then
    taken(ledgers .. user, users .. user, tokens, digest, now, tonumber(ARGV[4]))
end
return {text(now), false, unreadable}
