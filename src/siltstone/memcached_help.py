"""What `siltstone memcached -h` prints: the flags that memcached_flags.py takes."""

from typing import Final

HELP: Final = """\
siltstone memcached: memcached's flags, protocol and statistics

-p, --port=<num>          TCP port, 0 = none, -1 = any free one (default: 11211)
-s, --unix-socket=<file>  listen on a Unix socket instead of TCP
-a, --unix-mask=<mask>    its permissions, octal (default: 700)
-l, --listen=<addr>       addresses to listen on: host, host:port, several with commas or
                          several -l (default: 127.0.0.1; memcached's is every interface)
-U, --udp-port=<num>      only 0, UDP is not supported
-A, --enable-shutdown     allow the "shutdown" command
-d, --daemon              run in the background
-P, --pidfile=<file>      write the process number to <file>
-u, --user=<user>         become <user> (only as root)
-m, --memory-limit=<num>  megabytes of memory for items (default: 64)
-M, --disable-evictions   answer with an error when memory is full
-c, --conn-limit=<num>    simultaneous connections (default: 1024)
-t, --threads=<num>       accepted; one event loop serves them all (default: 4)
-C, --disable-cas         no CAS numbers
-b, --listen-backlog=<num> connections waiting to be accepted (default: 1024)
-B, --protocol=<name>     auto, ascii or binary (default: auto)
-I, --max-item-size=<num> largest item, k and m are understood (default: 1m, 1k to 1024m)
-F, --disable-flush-all   refuse flush_all
-X, --disable-dumping     refuse stats cachedump and lru_crawler metadump
-W, --disable-watch       refuse watch
-v, -vv, -vvv             say more on stderr
-h, --help -V, --version -i, --license
-D, --delimiter=<char>    ends the prefix of a key in "stats detail", which is on then (default: :)
-Z, --enable-ssl          TLS; -l notls:ADDRESS for a port without. Also needs ssl_chain_cert
-f -n -k -L -r -N -R      accepted, without effect
-o, --extended            options with commas between them:
   - ext_path:            file for values on flash and its size, ext_path=/mnt/d1/flash:1G;
                          several times for several devices. It starts empty.
   - ext_page_size:       megabytes that are freed together (default: 64)
   - ext_wbuf_size:       megabytes written together (default: 4)
   - ext_threads:         threads for device I/O (default: 1)
   - ext_item_size:       smaller values go to flash only when memory is short (default: 512)
   - ext_item_age:        seconds without use until an item goes to flash (default: no limit)
   - ext_low_ttl:         items with less time left are kept apart (default: 0, off)
   - ext_drop_unread:     compaction drops what was never read
   - ext_recache_rate:    one hot hit in N brings the item back to memory (default: 2000)
   - ext_compact_under:   free pages below which compaction starts (default: a quarter)
   - ext_drop_under:      free pages below which unread items are dropped (default: a quarter)
   - ext_max_frag:        live share below which a page is compacted (default: 0.80)
   - idle_timeout:        seconds until an idle connection is closed (default: 0, never)
   - no_maxconns_fast:    let connections over the limit wait instead of closing them
   - ssl_chain_cert:      certificate chain (PEM); read again by the command refresh_certs
   - ssl_key:             its key (PEM), if it is not in the same file
   - ssl_verify_mode:     certificates of clients: 0 none, 1 request, 2 or 3 require (default: 0)
   - ssl_ca_cert:         who signs them (PEM)
   - ssl_ciphers:         OpenSSL's list
   - ssl_min_version:     2: TLS 1.2, 3: TLS 1.3 (default: 2; older ones are not spoken)
   - ssl_wbuf_size, ssl_session_cache, ssl_kernel_tls: accepted, without effect
   - ext_io_depth, ext_max_sleep, slab_*, lru_*, hot_*, warm_*, hashpower, hash_algorithm,
     temporary_ttl, tail_repair_time, track_sizes, read_buf_mem_limit, watcher_logbuf_size,
     worker_logbuf_size, modern: accepted, without effect
"""
