-- Takes a note: whoever comes first has it. KEYS[1]: its key. Answers its bytes, or nil. What GETDEL does from Redis 6.2 on.
local note = redis.call('GET', KEYS[1])
if note then
  redis.call('DEL', KEYS[1])
end
return note
