-- KEYS: the channel; with an idempotency key also what is kept under it. ARGV: the message, its digest, and for how many
-- seconds the answer is kept.
-- Publishes the message, unless it was published under that key. Returns how many took it, or CONFLICT when another message
-- was. All of it is one step, so that nobody ever finds a message that is being published.
local kept = KEYS[2]
if kept then
    local digest, before = string.match(redis.call('GET', kept) or '', '^(%x+) (%d+)$')
    if digest then return digest == ARGV[2] and tonumber(before) or CONFLICT end
    -- Written first: what Redis refuses to write is not published.
    redis.call('SET', kept, ARGV[2] .. ' 0', 'EX', ARGV[3])
end
local taken = redis.call('PUBLISH', KEYS[1], ARGV[1])
if kept and taken > 0 then redis.call('SET', kept, ARGV[2] .. ' ' .. taken, 'EX', ARGV[3]) end
-- Nobody has it: it may be sent again.
if kept and taken == 0 then redis.call('DEL', kept) end
return taken
