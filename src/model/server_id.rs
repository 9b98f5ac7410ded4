//! Names of gateway instances.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

/// Name of a gateway instance: made once, kept in its data directory.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct ServerId(Arc<str>);

impl ServerId {
    /// Takes it as it is kept.
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    /// As it is kept.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ServerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for ServerId {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&str> for ServerId {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<ServerId> for String {
    fn from(id: ServerId) -> Self {
        id.as_str().to_owned()
    }
}
