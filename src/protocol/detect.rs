//! Which codec a connection speaks, decided once from its first bytes.
