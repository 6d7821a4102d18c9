-- Appends to a log. KEYS[1]: a stream whose ids are `number-0`. ARGV: ttl in ms, events that are kept, then number and
-- bytes of each event. Numbers are compared as text, by length first: they may be greater than Lua can count.
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local last = newest and string.match(newest[1], '^%d+') or '0'
local fault
for at = 3, #ARGV, 2 do
  local number = ARGV[at]
  if #number > #last or (#number == #last and number > last) then
    local added = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], number .. '-0', 'e', ARGV[at + 1])
    if type(added) == 'table' and added.err then
      fault = added
      break
    end
    last = number
  end
end
-- Whatever happened: no log stays for ever.
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return fault or 1
