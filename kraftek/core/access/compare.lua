-- KEYS: the user's set, the ledger, the tokens' hashes
-- ARGV: for each token: its digest, a number of rooms, and these
-- Answers with the time; whether the set is missing before its time; when something of the user was last found missing;
-- and for each token: whether its hash should still be there, what there is for these rooms, or nothing if the token is
-- not in the set, and whether there is any answer in the hash.
local user, ledger = KEYS[1], KEYS[2]
local taken, due = unpack(redis.call('HMGET', ledger, 'taken', 'user'))

-- A key expires within two milliseconds before its time in the ledger.
local function should_exist(due)
    return due and tonumber(due) - 10000 > now and 1 or 0
end

-- What stands in a hash beside answers says that the auth service is being asked, perhaps in place of an old answer.
local function has_answer(token)
    for _, value in ipairs(redis.call('HVALS', token)) do
        if value:find('"userId"', 1, true) or value:find('"replaced"', 1, true) then return 1 end
    end
    return 0
end

local missing = redis.call('EXISTS', user) == 0 and should_exist(due) or 0
local result, at = {text(now), missing, taken or '0'}, 1
for i = 3, #KEYS do
    local digest, rooms = ARGV[at], tonumber(ARGV[at + 1])
    local answers, answered = {}, 0
    -- Every key is read, so that it is tracked again.
    if redis.call('EXISTS', KEYS[i]) == 1 and redis.call('SISMEMBER', user, digest) == 1 then
        answered = has_answer(KEYS[i])
        if rooms > 0 then answers = redis.call('HMGET', KEYS[i], unpack(ARGV, at + 2, at + 1 + rooms)) end
    end
    result[#result + 1] = {should_exist(redis.call('HGET', ledger, digest)), answers, answered}
    at = at + 2 + rooms
end
return result
