"""Storing a value too large for RAM: straight to flash. See large.pyx."""
from siltstone.cache.engine cimport record_t, reply_t, request_t
from siltstone.cache.shard cimport cache_t

# Outside every lock. Writes the value's records; LOG_OK: request.position and cas_new are set, so
# that change_apply only links them. A cache_status_t otherwise.
cdef int large_write(cache_t *cache, request_t *request) noexcept nogil
