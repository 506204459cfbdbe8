#!lua name=millrace_stock_4
-- The stock read model's Redis Functions: each runs alone on its server, so what one reads or writes is one moment.
-- All keys of a call carry one hash tag: that of a partition of a generation, or that of the catalogue.
--
-- Numbers of 64 bits stay decimal strings: a Lua number is exact only up to 2^53.
-- The library's name and the functions' names end in a version, so that two builds can share a server during an
-- upgrade: raise it, here and in connection.rs, with every change of this file.

local CHECKPOINT = { 'sequence', 'next_offset', 'xid', 'position', 'event_time' }

-- Whether decimal a is less than decimal b; neither has leading zeros.
local function is_below(a, b)
  if #a ~= #b then
    return #a < #b
  end
  return a < b
end

-- The decimal after this one.
local function successor(digits)
  local nines = string.match(digits, '9*$')
  local head = string.sub(digits, 1, #digits - #nines)
  local zeros = string.rep('0', #nines)
  if head == '' then
    return '1' .. zeros
  end
  return string.sub(head, 1, -2) .. string.char(string.byte(head, -1) + 1) .. zeros
end

-- A parked event is one line of JSON, then the record's value.
local function head_of(event)
  return string.match(event, '^[^\n]*')
end

-- A key without the byte that ends it in a member, in the same order: keys of foreign records may have any.
local ESCAPED = { ['\0'] = '\1\1', ['\1'] = '\1\2' }
local PLAIN = { ['\1'] = '\0', ['\2'] = '\1' }

-- Members of parked_by_key are `key NUL place`: a key's events stand together, in order.
local function member(key, place)
  return string.gsub(key, '[%z\1]', ESCAPED) .. '\0' .. place
end

-- A place is `sequence:offset`, each of 20 digits.
local PLACE_LENGTH = 41

local function place_of(found)
  return string.sub(found, -PLACE_LENGTH)
end

local function key_of(found)
  return (string.gsub(string.sub(found, 1, -PLACE_LENGTH - 2), '\1([\1\2])', PLAIN))
end

-- Behind all members of a key, and before those of the next one: `:` follows the digits that a place begins with.
local function behind(key)
  return '(' .. member(key, ':')
end

local function checkpoint_of(state)
  return redis.call('HMGET', state, unpack(CHECKPOINT))
end

-- keys: generations. args: number, how it is built.
-- Creates the generation where it is missing; answers how the one that is there is built. The first one serves.
local function prepare(keys, args)
  if redis.call('HSETNX', keys[1], args[1], args[2]) == 1 then
    redis.call('HSETNX', keys[1], 'serving', args[1])
  end
  return redis.call('HGET', keys[1], args[1])
end

-- keys: generations, decisions, published decisions. args: id of the catalogue, its version, the version before, the
-- catalogue, the number that serves, count of marks, (number, mark, whether it stays as it is where it is there) of
-- each, then decisions. Replaces the catalogue, with what follows from it, by the one that follows on it; or tells the
-- version that is there.
local function change(keys, args)
  local held = redis.call('HMGET', keys[1], 'catalogue_id', 'catalogue_version')
  if held[1] and (held[1] ~= args[1] or held[2] ~= args[3]) then
    return { 'moved', held[2] }
  end
  if not held[1] and args[3] ~= '0' then
    return { 'moved', '0' }
  end
  local at = 7
  for _ = 1, tonumber(args[6]) do
    if args[at + 2] == '1' then
      redis.call('HSETNX', keys[1], args[at], args[at + 1])
    else
      redis.call('HSET', keys[1], args[at], args[at + 1])
    end
    at = at + 3
  end
  if not held[1] then
    -- Of a catalogue that was lost.
    redis.call('DEL', keys[2], keys[3])
  end
  while at <= #args do
    redis.call('RPUSH', keys[2], args[at])
    at = at + 1
  end
  redis.call('HSET', keys[1], 'catalogue_id', args[1], 'catalogue_version', args[2], 'catalogue', args[4], 'serving', args[5])
  return { 'changed' }
end

-- keys: published decisions. args: number.
local function note_published(keys, args)
  local noted = redis.call('GET', keys[1])
  if not noted or is_below(noted, args[1]) then
    redis.call('SET', keys[1], args[1])
  end
  return 'OK'
end

-- keys: state. args: whether nothing else is left of the partition.
-- The mark stays for good: a projector that slept through the removal must not begin anew.
local function retire(keys, args)
  if args[1] == '1' then
    redis.call('DEL', keys[1])
  end
  redis.call('HSET', keys[1], 'retired', '1')
  return 'OK'
end

local function is_retired(state)
  return redis.call('HEXISTS', state, 'retired') == 1
end

-- keys: state, parked_keys, parked order, parked events, parked_by_key.
-- args: now in microseconds, how the generation is built, the key of records that are nobody's.
-- The time keeps the epoch above those of owners that a lost disk has forgotten; the order of owners never rests on it.
local function claim(keys, args)
  if is_retired(keys[1]) then
    return { 'retired' }
  end
  local held = redis.call('HMGET', keys[1], 'epoch', 'built')
  local epoch = args[1]
  if held[1] then
    if held[2] ~= args[2] then
      return { 'built', held[2] }
    end
    local next_epoch = successor(held[1])
    if is_below(epoch, next_epoch) then
      epoch = next_epoch
    end
  else
    redis.call('HSET', keys[1], 'built', args[2], 'live', '0')
    for _, field in ipairs(CHECKPOINT) do
      redis.call('HSET', keys[1], field, '0')
    end
  end
  redis.call('HSET', keys[1], 'epoch', epoch)
  -- An earlier library parked events without this index, or without the escapes in it.
  local is_old = redis.call('ZCARD', keys[3]) ~= redis.call('ZCARD', keys[5])
  for _, key in ipairs(redis.call('HKEYS', keys[2])) do
    is_old = is_old or string.find(key, '[%z\1]') ~= nil
  end
  if is_old then
    redis.call('DEL', keys[5])
    for _, place in ipairs(redis.call('ZRANGE', keys[3], 0, -1)) do
      local event = redis.call('HGET', keys[4], place)
      if event then
        redis.call('ZADD', keys[5], 0, member(cjson.decode(head_of(event)).key, place))
      end
    end
  end
  local live = redis.call('HGET', keys[1], 'live')
  local foreign = redis.call('HGET', keys[2], args[3]) or '0'
  return { 'claimed', epoch, live, checkpoint_of(keys[1]), redis.call('HKEYS', keys[2]), foreign }
end

-- Takes events out of the parked ones. args from `at`: count, then (place, key) of each; answers where the rest begins.
local function remove(keys, args, at)
  local count = tonumber(args[at])
  at = at + 1
  for _ = 1, count do
    local place, key = args[at], args[at + 1]
    if redis.call('ZREM', keys[2], place) == 1 and redis.call('HINCRBY', keys[4], key, -1) <= 0 then
      redis.call('HDEL', keys[4], key)
    end
    redis.call('ZREM', keys[5], member(key, place))
    redis.call('HDEL', keys[3], place)
    at = at + 2
  end
  return at
end

-- keys: state, parked order, parked events, parked_keys, parked_by_key, discarded order, discarded events, requests,
--       answers, then one hash per SKU.
-- args: epoch, 5 of the checkpoint from, 5 of the checkpoint to, live,
--       count of discarded events, (place, note) of each,
--       count of events that leave, (place, key) of each,
--       count of events that stay, (place, event) of each,
--       count of answers, (id, answer) of each, how many are kept,
--       count of parked events, (place, key, event) of each,
--       then (index of the SKU's key, warehouse, row) of each row.
local function apply(keys, args)
  local state = keys[1]
  if is_retired(state) then
    return { 'retired' }
  end
  local epoch = redis.call('HGET', state, 'epoch')
  if not epoch then
    return { 'missing' }
  end
  if is_below(args[1], epoch) then
    return { 'superseded', epoch }
  end
  if is_below(epoch, args[1]) then
    -- The server lost the claim, and what the owner wrote before it without moving the checkpoint.
    return { 'unclaimed' }
  end
  local found = checkpoint_of(state)
  for index = 1, #CHECKPOINT do
    if found[index] ~= args[1 + index] then
      return { 'moved', found }
    end
  end

  -- The checkpoint goes last: should the server stop the function half-way, the same batch is applied again, and
  -- every write before it may be repeated.
  local at = 14
  for _ = 1, tonumber(args[13]) do
    local event = redis.call('HGET', keys[3], args[at])
    if event then
      redis.call('ZADD', keys[6], 0, args[at])
      redis.call('HSET', keys[7], args[at], args[at + 1] .. '\n' .. event)
    end
    at = at + 2
  end
  at = remove(keys, args, at)
  local kept = tonumber(args[at])
  at = at + 1
  for _ = 1, kept do
    if redis.call('HEXISTS', keys[3], args[at]) == 1 then
      redis.call('HSET', keys[3], args[at], args[at + 1])
    end
    at = at + 2
  end
  local answers = tonumber(args[at])
  at = at + 1
  for _ = 1, answers do
    if redis.call('HDEL', keys[8], args[at]) == 1 then
      redis.call('LPUSH', keys[9], args[at + 1])
    end
    at = at + 2
  end
  redis.call('LTRIM', keys[9], 0, args[at] - 1)
  local parked = tonumber(args[at + 1])
  at = at + 2
  for _ = 1, parked do
    if redis.call('ZADD', keys[2], 0, args[at]) == 1 then
      redis.call('HINCRBY', keys[4], args[at + 1], 1)
    end
    redis.call('ZADD', keys[5], 0, member(args[at + 1], args[at]))
    redis.call('HSET', keys[3], args[at], args[at + 2])
    at = at + 3
  end
  while at < #args do
    redis.call('HSET', keys[9 + tonumber(args[at])], args[at + 1], args[at + 2])
    at = at + 3
  end
  local moved = { 'epoch', args[1] }
  for index, field in ipairs(CHECKPOINT) do
    moved[#moved + 1] = field
    moved[#moved + 1] = args[6 + index]
  end
  if args[12] == '1' then
    moved[#moved + 1] = 'live'
    moved[#moved + 1] = '1'
  end
  redis.call('HSET', state, unpack(moved))
  return { 'applied' }
end

-- keys: state, then the SKU's hash of each row. args: the warehouse of each row.
-- The checkpoint, and the rows that are true at it.
local function load(keys, args)
  local rows = {}
  for index = 2, #keys do
    rows[index - 1] = redis.call('HGET', keys[index], args[index - 1])
  end
  return { checkpoint_of(keys[1]), rows }
end

-- keys: state, parked_keys, then one hash per SKU. args: how the generation is built, then the SKUs.
-- Rows and the position that they are true at, or that there is nothing to answer from.
local function read(keys, args)
  local held = redis.call('HMGET', keys[1], 'live', 'built', 'xid', 'position')
  if held[1] ~= '1' or held[2] ~= args[1] then
    return { 'rebuilding' }
  end
  local answers = {}
  for index = 3, #keys do
    local rows = redis.call('HGETALL', keys[index])
    answers[index - 2] = { rows, redis.call('HEXISTS', keys[2], args[index - 1]) }
  end
  return { 'live', held[3], held[4], answers }
end

-- keys: head, state. args: next offset, seen at.
-- The last one holds, whatever its time says: clocks go back.
local function observe(keys, args)
  if is_retired(keys[2]) then
    return 'retired'
  end
  redis.call('HSET', keys[1], 'next_offset', args[1], 'seen_at', args[2])
  return 'OK'
end

-- keys: state, head, parked order, parked_keys.
local function status(keys)
  return {
    redis.call('HGET', keys[1], 'live'),
    checkpoint_of(keys[1]),
    redis.call('HMGET', keys[2], 'next_offset', 'seen_at'),
    redis.call('HLEN', keys[4]),
    redis.call('ZCARD', keys[3]),
  }
end

-- keys: an order of places, their events. args: where to begin, as ZRANGEBYLEX has it, how many.
local function parked(keys, args)
  local events = {}
  for index, place in ipairs(redis.call('ZRANGEBYLEX', keys[1], args[1], '+', 'LIMIT', 0, args[2])) do
    events[index] = redis.call('HGET', keys[2], place)
  end
  return events
end

-- keys: parked_by_key, parked events. args: key, the place to begin behind or nothing, how many.
local function parked_of(keys, args)
  local from = '(' .. member(args[1], args[2])
  local events = {}
  for index, found in ipairs(redis.call('ZRANGEBYLEX', keys[1], from, behind(args[1]), 'LIMIT', 0, args[3])) do
    events[index] = redis.call('HGET', keys[2], place_of(found))
  end
  return events
end

-- keys: parked_by_key, parked events, parked_keys. args: whether to begin behind a key, that key, how many.
-- Of each key: its name, its number of events, the head of its first.
local function keys_page(keys, args)
  local found = {}
  local from = args[1] == '1' and behind(args[2]) or '-'
  for _ = 1, tonumber(args[3]) do
    local first = redis.call('ZRANGEBYLEX', keys[1], from, '+', 'LIMIT', 0, 1)[1]
    if not first then
      break
    end
    local key = key_of(first)
    local event = redis.call('HGET', keys[2], place_of(first))
    found[#found + 1] = { key, redis.call('HGET', keys[3], key) or '0', head_of(event or '') }
    from = behind(key)
  end
  return found
end

-- keys: requests, state. args: id, request, how many may wait.
local function request(keys, args)
  if is_retired(keys[2]) then
    return 'retired'
  end
  if redis.call('HEXISTS', keys[1], args[1]) == 0 and redis.call('HLEN', keys[1]) >= tonumber(args[3]) then
    return 'full'
  end
  redis.call('HSETNX', keys[1], args[1], args[2])
  return 'waits'
end

-- keys: state. args: place.
local function mirror(keys, args)
  local marked = redis.call('HGET', keys[1], 'mirrored')
  -- Places are compared as text; what was never claimed has no parked events.
  if redis.call('HEXISTS', keys[1], 'epoch') == 1 and not is_retired(keys[1]) and (not marked or marked < args[1]) then
    redis.call('HSET', keys[1], 'mirrored', args[1])
  end
  return 'OK'
end

redis.register_function('millrace_stock_4_prepare', prepare)
redis.register_function('millrace_stock_4_claim', claim)
redis.register_function('millrace_stock_4_apply', apply)
redis.register_function('millrace_stock_4_observe', observe)
redis.register_function('millrace_stock_4_request', request)
redis.register_function('millrace_stock_4_mirror', mirror)
redis.register_function('millrace_stock_4_change', change)
redis.register_function('millrace_stock_4_note_published', note_published)
redis.register_function('millrace_stock_4_retire', retire)

local function register_reader(name, callback)
  redis.register_function { function_name = name, callback = callback, flags = { 'no-writes' } }
end

register_reader('millrace_stock_4_load', load)
register_reader('millrace_stock_4_read', read)
register_reader('millrace_stock_4_status', status)
register_reader('millrace_stock_4_parked', parked)
register_reader('millrace_stock_4_parked_of', parked_of)
register_reader('millrace_stock_4_parked_keys', keys_page)
