//! Block transports as sans-IO engines: bytes and `now_ns` in, bytes out. They know no port, no
//! switch and no volume.

pub mod nvmf;
