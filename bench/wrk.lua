-- wrk's part of load.py: sends the requests of a file in turn, and prints what it saw as one line of JSON.
-- Argument: the file. wrk itself counts every answer from 400 on as an error.

local requests, place, threads = {}, 0, 0

function setup(thread)
    thread:set("number", threads)
    threads = threads + 1
end

function init(args)
    local file = assert(io.open(args[1], "rb"))
    for each in file:read("*a"):gmatch("[^%z]+") do
        requests[#requests + 1] = each
    end
    file:close()
    place = math.floor(number * #requests / 7) % #requests
end

function request()
    place = place % #requests + 1
    return requests[place]
end

function done(summary, latency)
    local at = {}
    for index, percent in ipairs({50, 99, 99.9}) do
        at[index] = latency:percentile(percent)
    end
    local errors = {}
    for kind, count in pairs(summary.errors) do
        errors[#errors + 1] = string.format('"%s":%d', kind, count)
    end
    print(string.format('{"requests":%d,"duration_us":%d,"latency_us":[%s],"errors":{%s}}',
        summary.requests, summary.duration, table.concat(at, ","), table.concat(errors, ",")))
end
