"""Class Log: what engines hold of the log. See log_face.pyx."""
from siltstone.log.arena cimport Arena
from siltstone.log.device_io cimport DeviceHandle
from siltstone.log.livemap cimport LiveMap
from siltstone.log.state cimport log_t

cdef class Log:
    """The log over an arena and a device; engines take `c_log`."""
    cdef log_t *c_log
    cdef log_t _log
    cdef readonly Arena arena
    cdef readonly object device
    cdef readonly LiveMap live_map
    cdef DeviceHandle _handle
    cdef int _open(self, Arena arena, object device, LiveMap live_map,
                   object process_slot) except -1
    cdef int _note_files(self) except -1
