-- KEYS: the rules of histories, and the channel; with an idempotency key also what is kept under it. ARGV: the message, its
-- digest, for how many seconds the answer is kept, and whom telling_to is given, or nothing.
-- Publishes the message, unless it was published under that key. Returns how many took it, and where it is in the history of
-- those: offset and epoch, or 0 and nothing; or CONFLICT when another message was published under the key. All of it is
-- one step, so that nobody ever finds a message that is being published.
local kept = KEYS[3]
if kept then
    local digest, taken, place = string.match(redis.call('GET', kept) or '', '^(%x+) (%d+)(.*)$')
    if digest then
        local offset, epoch = place:match('^ (%d+) (%x+)$')
        if digest ~= ARGV[2] then return {CONFLICT, 0, ''} end
        return {tonumber(taken), tonumber(offset or 0), epoch or ''}
    end
    -- Written first: what Redis refuses to write is not published.
    redis.call('SET', kept, ARGV[2] .. ' 0', 'EX', ARGV[3])
end
local done
if ARGV[4] == '' then
    done = {redis.call('PUBLISH', KEYS[2], ARGV[1]), 0, ''}
else
    done = telling_to(KEYS[1]:sub(1, -1 - #(OWN .. 'rules')), KEYS[2], ARGV[4], ARGV[1], '')()
end
local taken, offset, epoch = unpack(done)
if kept and taken == 0 and offset == 0 then
    -- Nobody has it: it may be sent again.
    redis.call('DEL', kept)
elseif kept then
    local place = offset > 0 and string.format(' %.0f %s', offset, epoch) or ''
    redis.call('SET', kept, ARGV[2] .. ' ' .. taken .. place, 'EX', ARGV[3])
end
return done
