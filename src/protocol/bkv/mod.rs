//! BKV / GN codec.
