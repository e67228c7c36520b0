-- holder(newest): the socket that the string of the entry at hand is to name. newest: that of its user and room, and when
-- it entered, or false.
local function holder(newest)
    for i = 1, tonumber(ARGV[arg + 5]) do
        local rival = redis.call('ZREVRANGE', KEYS[key + 2 + services + i], 0, 0, 'WITHSCORES')
        if rival[1] and not (newest and tonumber(newest[2]) >= tonumber(rival[2])) then newest = rival end
    end
    return newest and newest[1]
end
