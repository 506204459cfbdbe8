#!lua name=millrace_stock_1
-- The stock read model's Redis Functions: each runs alone on its server, so what one reads or writes is one moment.
-- All keys of a call carry one hash tag, that of a partition of a generation.
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

-- keys: state, parked_keys. args: now in microseconds, how the generation is built.
-- The time keeps the epoch above those of owners that a lost disk has forgotten; the order of owners never rests on it.
local function claim(keys, args)
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
  local live = redis.call('HGET', keys[1], 'live')
  return { 'claimed', epoch, live, checkpoint_of(keys[1]), redis.call('HKEYS', keys[2]) }
end

-- keys: state, parked order, parked events, parked_keys, then one hash per SKU.
-- args: epoch, 5 of the checkpoint from, 5 of the checkpoint to, live, count of parked events,
--       (place, key, event) of each, then (index of the SKU's key, warehouse, row) of each row.
local function apply(keys, args)
  local state = keys[1]
  local epoch = redis.call('HGET', state, 'epoch')
  if not epoch then
    return { 'missing' }
  end
  if is_below(args[1], epoch) then
    return { 'superseded', epoch }
  end
  local found = checkpoint_of(state)
  for index = 1, #CHECKPOINT do
    if found[index] ~= args[1 + index] then
      return { 'moved', found }
    end
  end

  -- The checkpoint goes last: should the server stop the function half-way, the same batch is applied again, and
  -- every write before it may be repeated.
  local parked = tonumber(args[13])
  local at = 14
  for _ = 1, parked do
    if redis.call('ZADD', keys[2], 0, args[at]) == 1 then
      redis.call('HINCRBY', keys[4], args[at + 1], 1)
    end
    redis.call('HSET', keys[3], args[at], args[at + 2])
    at = at + 3
  end
  while at < #args do
    redis.call('HSET', keys[4 + tonumber(args[at])], args[at + 1], args[at + 2])
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

-- keys: the SKU's hash of each row. args: the warehouse of each row.
local function load(keys, args)
  local rows = {}
  for index = 1, #keys do
    rows[index] = redis.call('HGET', keys[index], args[index])
  end
  return rows
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

-- keys: head. args: next offset, seen at.
local function observe(keys, args)
  local seen_at = redis.call('HGET', keys[1], 'seen_at')
  if not seen_at or not is_below(args[2], seen_at) then
    redis.call('HSET', keys[1], 'next_offset', args[1], 'seen_at', args[2])
  end
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

-- keys: parked order, parked events. args: the first place, how many.
-- Places are `sequence:offset`, each of 20 digits; events that share a sequence are never parted.
local function parked(keys, args)
  local places = redis.call('ZRANGEBYLEX', keys[1], '[' .. args[1], '+', 'LIMIT', 0, args[2])
  local last = places[#places]
  if last then
    local behind = string.sub(last, 1, 20) .. ';'
    for _, place in ipairs(redis.call('ZRANGEBYLEX', keys[1], '(' .. last, '(' .. behind)) do
      places[#places + 1] = place
    end
  end
  local events = {}
  for index, place in ipairs(places) do
    events[index] = redis.call('HGET', keys[2], place)
  end
  return events
end

redis.register_function('millrace_stock_1_prepare', prepare)
redis.register_function('millrace_stock_1_claim', claim)
redis.register_function('millrace_stock_1_apply', apply)
redis.register_function('millrace_stock_1_observe', observe)

local function register_reader(name, callback)
  redis.register_function { function_name = name, callback = callback, flags = { 'no-writes' } }
end

register_reader('millrace_stock_1_load', load)
register_reader('millrace_stock_1_read', read)
register_reader('millrace_stock_1_status', status)
register_reader('millrace_stock_1_parked', parked)
