-- For wrk: posts files in turn; at the end prints one line of JSON. Arguments: their content type, and the files.
local requests, turn = {}, 0

function init(arguments)
  for index = 2, #arguments do
    local file = assert(io.open(arguments[index], "rb"))
    requests[#requests + 1] = wrk.format("POST", nil, {["Content-Type"] = arguments[1]}, file:read("*a"))
    file:close()
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '{"answers": %d, "seconds": %.6f, "median_ms": %.3f, "p95_ms": %.3f, "failed": %d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
