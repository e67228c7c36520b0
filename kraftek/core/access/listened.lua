-- KEYS: what gateways have heard without a gap; they subscribe to a channel of the same name
-- ARGV: the gateway, the epoch, since when it has listened or 0 for now, until when or 0 for the same,
--       microseconds after which one that has not been here is dead
-- Answers with the time since which some gateway has listened at each moment, how many gateways there are, and how many
-- of these may yet turn out to have listened when this one began.
-- Who begins asks the others to say until when they have listened.
local heard, me, epoch = KEYS[1], ARGV[1], ARGV[2]
local from, ending, patience = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
keep_type('hash', heard)
local others, entries = {}, redis.call('HGETALL', heard)
for i = 1, #entries, 2 do
    local since, to, here, its_epoch = entries[i + 1]:match('^(%d+) (%d+) (%d+) (%S+)$')
    if its_epoch == epoch then
        others[entries[i]] = {from = tonumber(since), ending = tonumber(to), here = tonumber(here)}
        now = math.max(now, tonumber(here) + 1)  -- the clock may have been set back
    else
        redis.call('HDEL', heard, entries[i])
    end
end
local begins = from == 0
if begins then
    from = now
end
if ending == 0 then
    ending = from
end
others[me] = nil
local live, behind = 1, 0
for id, other in pairs(others) do
    if other.here + patience < now then
        redis.call('HDEL', heard, id)
        others[id] = nil
    else
        live = live + 1
        if other.ending < from and other.from < from then
            behind = behind + 1
        end
    end
end
local reached
repeat
    reached = from
    for _, other in pairs(others) do
        if other.from < from and other.ending >= from then
            from = other.from
        end
    end
until from == reached
redis.call('HSET', heard, me, table.concat({text(from), text(ending), text(now), epoch}, ' '))
redis.call('PEXPIRE', heard, 3600000)
if begins and live > 1 then
    redis.call('PUBLISH', heard, '')
end
return {text(from), live, behind}
