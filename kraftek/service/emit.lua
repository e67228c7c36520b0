-- Of the commands those that append to the stream of the gateways: the words of each are the stream and the event. Together
-- they find room there, for `most` events of `bytes`, or nothing is done and FULL is returned.
local events, name, size, word = {}, nil, 0, 3
while ARGV[word] do
    if ARGV[word] == 'emit' then
        name, events[#events + 1] = ARGV[word + 2], ARGV[word + 3]
        size = size + #ARGV[word + 3]
    end
    word = word + 2 + ARGV[word + 1]
end
local _, _, keep, rest = streams()
if not rest().takes(name, size, most - #events + 1, bytes) then return FULL end
function emit()
    for _, event in ipairs(events) do rest().append(name, event) end
    keep()
end
