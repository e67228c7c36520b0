-- KEYS: the user's set, the prefix of tokens' keys, the ledger
-- ARGV: 1 for one room alone or 0, that room, milliseconds that the ledger lives at least
-- Answers with the digests of the tokens whose hashes it changed and did not delete.
local user, ledger, one_room = KEYS[1], KEYS[3], ARGV[1] == '1'
local changed = {}
keep_type('set', user)
keep_type('hash', ledger)
for _, digest in ipairs(redis.call('SMEMBERS', user)) do
    local token = KEYS[2] .. digest
    if one_room then
        keep_type('hash', token)
        if redis.call('HDEL', token, ARGV[2]) == 1 then
            changed[#changed + 1] = digest
        end
        if redis.call('EXISTS', token) == 0 then
            redis.call('HDEL', ledger, digest)
        end
    else
        redis.call('DEL', token)
    end
end
if not one_room then
    redis.call('DEL', user, ledger)
end
redis.call('HSET', ledger, one_room and 'cleared' or 'taken', text(now))
extend(ledger, tonumber(ARGV[3]))
return changed
