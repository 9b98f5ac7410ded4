//! The table, as text, Markdown and a page.

use std::collections::BTreeMap;

use crate::{
    goals::{GOALS, Goal},
    plot::Plot,
    rows::{Baseline, Row, Rows},
};

/// A ratio that has moved by more than this since the baseline is listed.
const MOVED: f64 = 0.1;

/// A column of a table whose lines are parts of the rows' names.
struct Column {
    head: &'static str,
    /// Last part of the names; `None`: a part in front of it.
    figure: Option<&'static str>,
}

const fn part(head: &'static str) -> Column {
    Column { head, figure: None }
}

const fn median_of(head: &'static str, figure: &'static str) -> Column {
    Column { head, figure: Some(figure) }
}

const WINDOWS: [Column; 9] = [
    part("connections"),
    part("window"),
    part("server"),
    median_of("user µs", "user_us"),
    median_of("system µs", "system_us"),
    median_of("total µs", "total_us"),
    median_of("ratio to bare", "ratio"),
    median_of("messages/s", "per_s"),
    median_of("throughput to Go", "to_go"),
];

const GROWTH: [Column; 6] = [
    part("connections"),
    part("heartbeats/s"),
    median_of("CPU, % of a core", "cpu_percent"),
    median_of("p50 ms", "p50_ms"),
    median_of("p99 ms", "p99_ms"),
    median_of("resident MB", "resident_mb"),
];

pub(crate) struct Report<'a> {
    /// Machine, kernel, commit and date, a line each.
    about: &'a str,
    rows: &'a Rows,
    baseline: &'a Baseline,
}

impl<'a> Report<'a> {
    pub(crate) const fn new(about: &'a str, rows: &'a Rows, baseline: &'a Baseline) -> Self {
        Self { about, rows, baseline }
    }

    /// Rows of goals that nothing was measured for.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        GOALS.iter().map(|goal| goal.row).filter(|row| self.rows.get(row).is_none()).collect()
    }

    /// For a terminal: the goals, and what moved.
    pub(crate) fn text(&self) -> String {
        format!("{}\n{}\n{}\n{}", self.about, padded(&self.goals()), self.verdict(), self.moved())
    }

    /// For a terminal: whatever was measured.
    pub(crate) fn rows(&self) -> String {
        format!("{}\n{}", self.about, padded(&self.everything()))
    }

    /// The goals, what moved, and everything else that was measured.
    pub(crate) fn markdown(&self) -> String {
        let about: String = self.about.lines().map(|line| format!("- {line}\n")).collect();
        let (goals, all) = (padded(&self.goals()), padded(&self.everything()));
        let windows = section(&self.of_rows("cost", &WINDOWS), "CPU per heartbeat, by connections and window");
        let growth = section(&self.of_rows("growth", &GROWTH), "Growth, by connections and rate");
        let (verdict, moved) = (self.verdict(), self.moved());
        format!("# Figures\n\n{about}\n{goals}\n{verdict}\n{moved}\n{windows}{growth}## All rows\n\n{all}")
    }

    /// One page that needs nothing else.
    pub(crate) fn html(&self, plots: &[Plot]) -> String {
        let mut out = String::from(HEAD);
        for line in self.about.lines() {
            out.push_str(&format!("<p class=about>{}</p>\n", escaped(line)));
        }
        table(&mut out, &self.goals());
        out.push_str(&format!("<p>{}</p>\n", escaped(&self.verdict())));
        for line in self.moved().lines().filter(|line| !line.is_empty()) {
            out.push_str(&format!("<p>{}</p>\n", escaped(line)));
        }
        for plot in plots {
            out.push_str(&format!("<figure>{}</figure>\n", plot.svg));
        }
        shown_table(&mut out, &self.of_rows("cost", &WINDOWS));
        shown_table(&mut out, &self.of_rows("growth", &GROWTH));
        out.push_str("<details><summary>All rows</summary>");
        table(&mut out, &self.everything());
        out.push_str("</details></main></html>\n");
        out
    }

    fn goals(&self) -> Vec<[String; 7]> {
        let head = ["what", "goal", "median", "least – most", "n", "", "since the baseline"].map(str::to_owned);
        let line = |goal: &Goal| {
            let bound = |unit| format!("{} {}", goal.bound.sign(), shown(goal.bound.value(), unit));
            let Some(row) = self.rows.get(goal.row) else {
                let [what, goal] = [goal.what.to_owned(), bound(unit_of(goal.row))];
                return [
                    what,
                    goal,
                    String::new(),
                    String::new(),
                    "0".to_owned(),
                    "not measured".to_owned(),
                    String::new(),
                ];
            };
            let met = if goal.bound.is_met(row.median()) { "met" } else { "NOT MET" };
            let [median, spread, n, change] = self.measured(goal.row, row);
            [goal.what.to_owned(), bound(&row.unit), median, spread, n, met.to_owned(), change]
        };
        [head].into_iter().chain(GOALS.iter().map(line)).collect()
    }

    fn everything(&self) -> Vec<[String; 5]> {
        let head = ["row", "median", "least – most", "n", "since the baseline"].map(str::to_owned);
        let line = |(name, row): (&str, &Row)| {
            let [median, spread, n, change] = self.measured(name, row);
            [name.to_owned(), median, spread, n, change]
        };
        [head].into_iter().chain(self.rows.iter().map(line)).collect()
    }

    /// Medians of the rows `first/…/FIGURE` in a line for each `…`: its parts, then a column for each figure. Only the first line, the
    /// columns' names, if there are none.
    fn of_rows<const N: usize>(&self, first: &str, columns: &[Column; N]) -> Vec<[String; N]> {
        // In the order of numbers where parts are some.
        type Parts<'a> = Vec<(u64, &'a str)>;
        let mut lines: BTreeMap<Parts<'_>, [String; N]> = BTreeMap::new();
        let named = columns.iter().take_while(|column| column.figure.is_none()).count();
        for (name, row) in self.rows.iter() {
            let parts: Vec<&str> = name.split('/').collect();
            let [head, parts @ .., figure] = &parts[..] else { continue };
            let column = columns.iter().position(|column| column.figure == Some(*figure));
            let (true, true, Some(column)) = (*head == first, parts.len() == named, column) else { continue };
            let order = parts.iter().map(|part| (part.parse().unwrap_or(u64::MAX), *part)).collect();
            let line = lines.entry(order).or_insert_with(|| std::array::from_fn(|_| String::new()));
            for (cell, part) in line.iter_mut().zip(parts) {
                *cell = part.parse().map_or_else(|_| (*part).to_owned(), grouped);
            }
            line[column] = number(row.median(), &row.unit);
        }
        let head = std::array::from_fn(|column| columns[column].head.to_owned());
        [head].into_iter().chain(lines.into_values()).collect()
    }

    /// Median, spread, number of values, change.
    fn measured(&self, name: &str, row: &Row) -> [String; 4] {
        let spread = format!("{} – {}", number(row.least(), &row.unit), number(row.most(), &row.unit));
        let change = self.baseline.change(name, row).map(percent).unwrap_or_default();
        [shown(row.median(), &row.unit), spread, row.len().to_string(), change]
    }

    fn verdict(&self) -> String {
        let measured = || GOALS.iter().filter_map(|goal| Some((goal, self.rows.get(goal.row)?)));
        let met = measured().filter(|(goal, row)| goal.bound.is_met(row.median())).count();
        let (count, missing) = (measured().count(), self.missing().len());
        format!("{met} of {count} goals met, {missing} not measured.\n")
    }

    fn moved(&self) -> String {
        let change = |(name, row)| Some((name, self.baseline.change(name, row)?));
        let moved = self.rows.iter().filter_map(change).filter(|(_, change)| change.abs() > MOVED);
        let lines: String = moved.map(|(name, change)| format!("- {name}: {}\n", percent(change))).collect();
        if lines.is_empty() { lines } else { format!("Moved by more than a tenth since the baseline:\n\n{lines}") }
    }
}

/// What a row would be in that nobody has measured.
fn unit_of(row: &str) -> &'static str {
    let last = row.rsplit('/').next().unwrap_or(row);
    match last {
        "ratio" | "to_go" => "×",
        "connections" => "",
        _ if last.ends_with("_us") => "µs",
        _ if last.ends_with("per_s") => "/s",
        _ if last.ends_with("_ms") => "ms",
        _ if last.ends_with("_mb") => "MB",
        _ if last.contains("bytes") => "bytes",
        _ => "ns",
    }
}

fn shown(value: f64, unit: &str) -> String {
    let space = if unit.is_empty() || unit == "/s" { "" } else { " " };
    format!("{}{space}{unit}", number(value, unit))
}

/// With as many digits as mean something.
fn number(value: f64, unit: &str) -> String {
    match value.abs() {
        _ if unit == "×" || unit == "µs" => format!("{value:.2}"),
        1_000.0.. => grouped(value),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut out = String::from(if value < 0.0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn percent(part: f64) -> String {
    format!("{:+.1} %", part * 100.0)
}

/// A table with a title; nothing where it has no lines.
fn section<const N: usize>(lines: &[[String; N]], title: &str) -> String {
    if lines.len() > 1 { format!("## {title}\n\n{}\n", padded(lines)) } else { String::new() }
}

/// A Markdown table whose columns stand below one another.
fn padded<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        for (column, (cell, width)) in line.iter().zip(widths).enumerate() {
            out.push_str(&match is_text(column, N) {
                true => format!("| {cell:<width$} "),
                false => format!("| {cell:>width$} "),
            });
        }
        out.push_str("|\n");
        if at == 0 {
            for (column, width) in widths.into_iter().enumerate() {
                out.push_str(&match is_text(column, N) {
                    true => format!("|{:-<1$}", "", width + 2),
                    false => format!("|{:->1$}:", "", width + 1),
                });
            }
            out.push_str("|\n");
        }
    }
    out
}

/// A table, if it has lines.
fn shown_table<const N: usize>(out: &mut String, lines: &[[String; N]]) {
    if lines.len() > 1 {
        table(out, lines);
    }
}

fn table<const N: usize>(out: &mut String, lines: &[[String; N]]) {
    out.push_str("<table>");
    for (at, line) in lines.iter().enumerate() {
        out.push_str("<tr>");
        for (column, cell) in line.iter().enumerate() {
            let tag = if at == 0 { "th" } else { "td" };
            let class = match cell.as_str() {
                "met" => " class=met",
                "NOT MET" => " class=missed",
                "not measured" => " class=none",
                _ if is_text(column, N) => "",
                _ => " class=number",
            };
            out.push_str(&format!("<{tag}{class}>{}</{tag}>", escaped(cell)));
        }
        out.push_str("</tr>\n");
    }
    out.push_str("</table>\n");
}

/// The first column, and in the table of goals the verdict, are words.
const fn is_text(column: usize, columns: usize) -> bool {
    column == 0 || columns == 7 && column == 5
}

pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

const HEAD: &str = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">
<title>Figures</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 2rem auto; max-width: 66rem; padding: 0 1rem }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-size: 14px }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #e3e3e3; vertical-align: top }
th { border-bottom: 2px solid #999; font-weight: 600 }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.met { color: #00664b } .missed { color: #b33a00; font-weight: 600 } .none { color: #777; white-space: nowrap }
.about { margin: 0; color: #555 }
figure { margin: 1.5rem 0 } svg { max-width: 100%; height: auto }
</style><main><h1>Figures</h1>
";
