//! What was measured: values by row.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// All values of a row, one for each round or sample.
#[derive(Clone, Default)]
pub(crate) struct Row {
    pub(crate) unit: String,
    values: Vec<f64>,
}

impl Row {
    pub(crate) fn median(&self) -> f64 {
        let middle = self.values.len() / 2;
        match self.values.len() % 2 {
            0 => f64::midpoint(self.values[middle - 1], self.values[middle]),
            _ => self.values[middle],
        }
    }

    pub(crate) fn least(&self) -> f64 {
        self.values[0]
    }

    pub(crate) fn most(&self) -> f64 {
        self.values[self.values.len() - 1]
    }

    pub(crate) const fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether it says the same on another machine: ratios, sizes and counts do, times and rates do not.
    pub(crate) fn travels(&self) -> bool {
        matches!(self.unit.as_str(), "×" | "bytes" | "calls" | "statements" | "round trips")
    }
}

/// Rows by name; a row has at least one value, and its values are in order.
#[derive(Default)]
pub(crate) struct Rows(BTreeMap<String, Row>);

#[derive(Deserialize)]
struct Line {
    row: String,
    unit: String,
    value: f64,
}

impl Rows {
    /// Reads lines of figures; a file that is not there has none.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let mut rows = Self::default();
        if !file.exists() {
            return Ok(rows);
        }
        for (at, line) in fs::read_to_string(file)?.lines().enumerate() {
            let line = serde_json::from_str(line).with_context(|| format!("{}:{}", file.display(), at + 1))?;
            let Line { row, unit, value } = line;
            rows.add(row, unit, [value]);
        }
        Ok(rows)
    }

    /// Adds the samples of every benchmark that criterion kept in `dir`, ns for each iteration, under criterion's own names.
    pub(crate) fn add_criterion(&mut self, dir: &Path) -> anyhow::Result<()> {
        #[derive(Deserialize)]
        struct Benchmark {
            full_id: String,
        }
        #[derive(Deserialize)]
        struct Sample {
            iters: Vec<f64>,
            times: Vec<f64>,
        }
        let mut samples = Vec::new();
        find(dir, "sample.json", &mut samples);
        for file in samples.iter().filter(|file| file.parent().is_some_and(|parent| parent.ends_with("new"))) {
            let Benchmark { full_id } = read_json(&file.with_file_name("benchmark.json"))?;
            let Sample { iters, times } = read_json(file)?;
            let each = times.iter().zip(&iters).map(|(time, iters)| time / iters);
            self.add(full_id, "ns".to_owned(), each);
        }
        Ok(())
    }

    fn add(&mut self, name: String, unit: String, values: impl IntoIterator<Item = f64>) {
        let row = self.0.entry(name).or_default();
        row.unit = unit;
        row.values.extend(values);
        row.values.sort_by(f64::total_cmp);
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Row> {
        self.0.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Row)> {
        self.0.iter().map(|(name, row)| (name.as_str(), row))
    }
}

/// Medians that were accepted at some commit, of rows that travel between machines.
#[derive(Default, Deserialize, Serialize)]
#[serde(transparent)]
pub(crate) struct Baseline(BTreeMap<String, f64>);

impl Baseline {
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        if file.exists() { read_json(file) } else { Ok(Self::default()) }
    }

    /// With what was measured now; what was not measured stays.
    pub(crate) fn with(&self, rows: &Rows) -> Self {
        let mut all = self.0.clone();
        let travelling = rows.iter().filter(|(_, row)| row.travels());
        // Three digits say all that a median of a few rounds knows.
        all.extend(travelling.map(|(name, row)| (name.to_owned(), (row.median() * 1e3).round() / 1e3)));
        Self(all)
    }

    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.0)? + "\n";
        fs::write(file, text).with_context(|| file.display().to_string())
    }

    /// By how much a row has changed since, as a part of what it was.
    pub(crate) fn change(&self, name: &str, row: &Row) -> Option<f64> {
        let before = *self.0.get(name)?;
        (row.travels() && before != 0.0).then(|| row.median() / before - 1.0)
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(file: &Path) -> anyhow::Result<T> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    serde_json::from_str(&text).with_context(|| file.display().to_string())
}

/// All files of this name below `dir`; a directory that is not there has none.
fn find(dir: &Path, name: &str, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            find(&path, name, found);
        } else if path.file_name().is_some_and(|file| file == name) {
            found.push(path);
        }
    }
}
