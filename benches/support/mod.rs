//! Where benches leave their figures, so that all of them make one table.
//!
//! A figure is a line of JSON: a row's name, its unit, one value. A bench that runs several rounds leaves several lines of one
//! name, and whoever reads them takes the median. Names are paths, such as `cost/15000/1000/mio/ratio`.

use std::{fs::OpenOptions, io::Write as _};

/// Names the file that figures are appended to; without it, they are only printed.
const FILE: &str = "CHARGEGATE_FIGURES";

/// Leaves one value of one row: `unit` is what is shown behind it, such as `/s`, `µs`, `ms`, `bytes`, `×`.
///
/// # Panics
/// The file cannot be written: a bench without its figures is no bench.
pub(crate) fn record(row: &str, unit: &str, value: f64) {
    let Some(path) = std::env::var_os(FILE) else { return };
    let line = serde_json::json!({ "row": row, "unit": unit, "value": value });
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| writeln!(file, "{line}"));
    written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
