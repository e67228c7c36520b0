-- What comes of a script: told is what presence.lua announces; result what it returns; problem an error, of which one that
-- says that a key is of another type ends nothing else; failure then is that key and the reason.
local services, told, failure, result, problem = tonumber(ARGV[1]), nil, nil, 0, nil
