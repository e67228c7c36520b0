-- of_another_epoch(key, epoch): whether the data are others than those that the gateway knows, if it knows any: Redis has lost
-- them a moment ago, and what is missing proves nothing.
local function of_another_epoch(key, epoch)
    return epoch ~= '' and redis.call('HGET', key, 'epoch') ~= epoch
end
