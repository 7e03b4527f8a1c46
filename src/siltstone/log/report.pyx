"""What people and tests see of the log: segment map, statistics, invariants.

Functions of the class `Log`, by the noun they read. They hold the GIL and no lock; what they show
of a log in use is a view from a moment, and `check_*` are for one that nobody uses meanwhile.
"""
from libc.stdint cimport uint32_t, uint64_t

from siltstone.log.atomics cimport load32
from siltstone.log.buffers cimport buffers_in_state, word_owner, word_state
from siltstone.log.format cimport RUN_ALIGNMENT
from siltstone.log.log cimport segment_info_t
from siltstone.log.segments cimport (
    live_owner, segments_count_live, segments_info, segments_lookup)
from siltstone.log.state cimport (
    BUFFER_FREE, BUFFER_OPEN, BUFFER_WRITING, LATENCY_COUNT, SEGMENT_DRAINING, SEGMENT_FREE,
    SEGMENT_OPEN, STATISTICS_STRIPES, buffer_t, log_t, segment_t, statistics_t, tail_offset,
    tail_records)

STATES = ("free", "open", "sealed", "draining")
COUNTERS = (
    "device_reads", "device_bytes_read", "device_writes", "device_bytes_written", "read_errors",
    "write_errors", "checksum_failures", "buffer_reads", "reads_gone", "reads_refused",
    "read_retries", "buffer_waits", "segment_waits", "lock_busy", "buffers_sealed",
    "buffers_lost", "buffers_repeated", "segments_opened", "segments_sealed",
    "segments_forgotten", "segments_freed", "segments_failed", "stream_repairs",
    "table_repairs", "live_refused", "bad_offsets")


cdef dict segment_dict(log_t *log, uint32_t slot):
    cdef segment_info_t info
    cdef uint32_t state = load32(&log.segments[slot].state)
    segments_info(log, slot, &info)
    if state == SEGMENT_FREE or state >= len(STATES):
        return {"slot": slot, "state": STATES[0], "stream": None, "version": 0,
                "filled_bytes": 0, "live_records": 0, "live_bytes": 0, "opened_ms": None}
    return {"slot": slot, "state": STATES[state], "stream": info.stream,
            "version": info.version, "filled_bytes": info.filled_bytes, "records": info.records,
            "live_records": info.live_records, "live_bytes": info.live_bytes,
            "opened_ms": info.opened_ms}


cdef dict statistics_dict(log_t *log):
    cdef uint32_t stripe, number
    cdef statistics_t *part
    result = dict.fromkeys(COUNTERS, 0)
    reads, writes = [0] * LATENCY_COUNT, [0] * LATENCY_COUNT
    for stripe in range(STATISTICS_STRIPES):
        part = &log.header.statistics[stripe]
        for number in range(<uint32_t>len(COUNTERS)):
            result[COUNTERS[number]] += part.counters[number]
        for number in range(LATENCY_COUNT):
            reads[number] += part.read_us[number]
            writes[number] += part.write_us[number]
    # bucket n: durations in [2^n, 2^(n+1)) microseconds
    result["read_latency_us"], result["write_latency_us"] = reads, writes
    result["streams"] = [
        {"records": log.streams[number].records, "user_bytes": log.streams[number].user_bytes,
         "version": log.streams[number].version if log.streams[number].segment else 0}
        for number in range(log.header.stream_count)]
    result["records"] = sum(stream["records"] for stream in result["streams"])
    result["user_bytes"] = sum(stream["user_bytes"] for stream in result["streams"])
    result["segments_free"] = log.header.segments_free
    result["segments_total"] = log.segment_count
    result["buffers_free"] = buffers_in_state(log, BUFFER_FREE)
    result["buffers_total"] = log.buffer_count
    result["failed_errno"] = log.header.failed
    return result


cdef int check_segments(log_t *log, bint exact) except -1:
    cdef uint32_t slot, free = 0, bits, counted
    cdef uint64_t index, listed = 0
    cdef segment_t *segment
    for slot in range(log.segment_count):
        segment = &log.segments[slot]
        assert segment.state <= SEGMENT_DRAINING
        bits, counted = segments_count_live(log, slot), load32(&segment.live_records)
        if segment.state == SEGMENT_FREE:
            assert segment.version == 0
            assert bits == 0
            free += segment.reserved_for == 0
            continue
        assert 0 < segment.version <= log.header.last_version
        assert tail_offset(segment.tail) <= log.segment_bytes
        assert segment.stream < log.header.stream_count
        if segment.state == SEGMENT_DRAINING:
            assert segments_lookup(log, segment.version) < 0
            continue
        assert segments_lookup(log, segment.version) == slot
        assert log.live_versions[slot] == live_owner(segment.version, segment.salt)
        assert counted == bits if exact else counted >= bits
        assert bits <= tail_records(segment.tail)
        assert (segment.state == SEGMENT_OPEN) == (
            log.streams[segment.stream].segment == slot + 1)
        listed += 1
    assert free == log.header.segments_free
    for index in range(log.version_mask + 1):
        listed -= log.versions[index] != 0
    assert listed == 0
    return 0


cdef int check_buffers(log_t *log) except -1:
    cdef uint32_t index, state, number
    cdef buffer_t *buffer
    for index in range(log.buffer_count):
        buffer = &log.buffers[index]
        state = word_state(buffer.word)
        assert state <= BUFFER_WRITING
        if state == BUFFER_FREE:
            assert buffer.version == 0
            continue
        assert buffer.run_offset % RUN_ALIGNMENT == 0
        assert <uint64_t>buffer.run_offset + buffer.capacity <= log.segment_bytes
        assert buffer.slot < log.segment_count
        if state == BUFFER_OPEN:
            assert log.streams[word_owner(buffer.word)].buffer == index + 1
        else:
            assert 0 < buffer.length == buffer.capacity
    for number in range(log.header.stream_count):
        index = log.streams[number].buffer
        assert index <= log.buffer_count
        if index:
            assert word_state(log.buffers[index - 1].word) == BUFFER_OPEN
            assert log.buffers[index - 1].slot + 1 == log.streams[number].segment
    return 0
