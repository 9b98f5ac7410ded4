//! AP3000 / DNY codec.
