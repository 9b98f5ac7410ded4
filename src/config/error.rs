//! What can be wrong with a configuration.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// One problem; [`Source::load`](super::Source::load) collects all of them.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML at line {line} column {column}: {problem}", path = .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
        /// What is wrong; never the line itself, which may hold a secret.
        problem: String,
    },
    /// A list in the environment is not a JSON array of objects.
    #[error("{variable} must be a JSON array of objects: {problem}")]
    Json {
        /// The variable.
        variable: String,
        /// What is wrong; never the value, which holds secrets.
        problem: String,
    },
    /// A name that is no key or variable.
    #[error("unknown {what} {name}, the nearest is {nearest}")]
    Unknown {
        /// `key` or `variable`.
        what: &'static str,
        /// The name found.
        name: String,
        /// The known name with the smallest edit distance.
        nearest: String,
    },
    /// A value of the wrong type or out of range.
    #[error("{key} must be {expected}, got {got}{}", from(.origin.as_deref()))]
    Invalid {
        /// Full key.
        key: String,
        /// Type, range or choices.
        expected: String,
        /// The value found.
        got: String,
        /// Where it was found, unless in the file.
        origin: Option<String>,
    },
    /// A key that a list entry cannot do without.
    #[error("{key} is missing")]
    Missing {
        /// Full key.
        key: String,
    },
    /// Two list entries share a value that must differ.
    #[error("{key} must differ from that of every other entry")]
    Duplicate {
        /// Full key of the later entry.
        key: String,
    },
    /// A `file:` secret that cannot be used.
    #[error("{key} names the file {path}, which {problem}", path = .path.display())]
    Secret {
        /// Full key.
        key: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A store and a queue that do not belong together.
    #[error(
        "store.url names {store} and queue.url {queue}: \
         use SQLite with the embedded queue, or PostgreSQL with Redis"
    )]
    Mode {
        /// The store.
        store: &'static str,
        /// The queue.
        queue: &'static str,
    },
    /// Two bounds in the wrong order.
    #[error("{low} must be at most {high}, got {low_value} and {high_value}")]
    Order {
        /// Key of the lower bound.
        low: String,
        /// Its value.
        low_value: u64,
        /// Key of the upper bound.
        high: String,
        /// Its value.
        high_value: u64,
    },
    /// Two listeners on one address.
    #[error("{first} and {second} are the same address")]
    SameAddress {
        /// One key.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
}

fn from(origin: Option<&str>) -> String {
    origin.map(|origin| format!(", from {origin}")).unwrap_or_default()
}

impl ConfigError {
    pub(super) fn invalid(key: &str, expected: impl Into<String>, got: impl Into<String>) -> Self {
        Self::Invalid { key: key.to_owned(), expected: expected.into(), got: got.into(), origin: None }
    }

    pub(super) fn syntax(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|character| *character != '\n').count() + 1;
        let problem = error.message().replace('\n', ", ");
        Self::Syntax { path: path.to_owned(), line, column, problem }
    }

    pub(super) fn unknown_key(name: &str, known: impl Iterator<Item = impl Into<String>>) -> Self {
        Self::Unknown { what: "key", name: name.to_owned(), nearest: nearest(name, known) }
    }

    pub(super) fn unknown_variable(name: &str, known: impl Iterator<Item = impl Into<String>>) -> Self {
        Self::Unknown { what: "variable", name: name.to_owned(), nearest: nearest(name, known) }
    }
}

/// Every problem found in one pass; never empty.
#[derive(Debug, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    /// One line each.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(error, f)?;
        }
        Ok(())
    }
}

/// The known name with the smallest edit distance to `name`; the first of equals.
pub(super) fn nearest(name: &str, known: impl Iterator<Item = impl Into<String>>) -> String {
    known.map(Into::into).min_by_key(|candidate| distance(name, candidate)).unwrap_or_default()
}

/// Levenshtein distance in characters.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (done, from) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = done + 1;
        for (column, to) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance() {
        for (left, right, expected) in [("", "", 0), ("", "ab", 2), ("kitten", "sitting", 3), ("ab", "ba", 2)] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
            assert_eq!(distance(right, left), expected, "{right} {left}");
        }
    }
}
