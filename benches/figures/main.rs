//! One table of what was measured, beside what is to be reached.
//!
//! The other benches leave their figures as lines of a file (`CHARGEGATE_FIGURES`, see `benches/support`), criterion leaves
//! samples in directories of its own. This reads both, prints each goal with the median of its rounds, and writes the same as
//! Markdown and as one HTML page with plots. Nothing is measured here.
//!
//! ```sh
//! make bench                                # measures everything, and ends with this
//! cargo bench --bench figures               # the table again, from what was measured last
//! cargo bench --bench figures -- --strict   # fails if something was not measured; a figure that is missed never fails
//! cargo bench --bench figures -- --accept   # keeps the ratios of this run as what the next ones are compared with
//! cargo bench --bench figures -- --images docs/images   # the plots of docs/benchmarks.md
//! ```

mod goals;
mod plot;
mod report;
mod rows;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, bail};
use clap::Parser;

use report::Report;
use rows::{Baseline, Rows};

#[derive(Parser)]
struct Args {
    /// Lines of figures [default: bench/figures.jsonl of the target directory].
    #[arg(long, env = "CHARGEGATE_FIGURES")]
    figures: Option<PathBuf>,
    /// Criterion's directory [default: criterion/ beside the figures, or that of the target directory].
    #[arg(long, env = "CRITERION_HOME")]
    criterion: Option<PathBuf>,
    /// Medians that ratios are compared with.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/baseline.json"))]
    baseline: PathBuf,
    /// Write the ratios of this run there.
    #[arg(long)]
    accept: bool,
    /// Write the plots there too.
    #[arg(long, value_name = "DIRECTORY")]
    images: Option<PathBuf>,
    /// Print every row, not the goals.
    #[arg(long)]
    all: bool,
    /// Fail if a goal has no figure.
    #[arg(long)]
    strict: bool,
    /// Passed by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    // Cargo's directory for files of benches is below the target directory.
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("..");
    let file = args.figures.unwrap_or_else(|| target.join("bench/figures.jsonl"));
    let dir = file.parent().context("a file in a directory")?.to_owned();
    let own = dir.join("criterion");
    let criterion = args.criterion.unwrap_or_else(|| if own.exists() { own } else { target.join("criterion") });

    let mut rows = Rows::read(&file)?;
    rows.add_criterion(&criterion)?;
    let baseline = Baseline::read(&args.baseline)?;
    // What the machine was when it was measured, not what it is now.
    let about = fs::read_to_string(dir.join("machine.txt")).unwrap_or_default();
    let report = Report::new(&about, &rows, &baseline);
    println!("{}", if args.all { report.rows() } else { report.text() });
    fs::write(dir.join("figures.md"), report.markdown())?;
    let plots = plot::all(&rows);
    for directory in [Some(&dir), args.images.as_ref()].into_iter().flatten() {
        for plot in &plots {
            let file = directory.join(format!("{}.svg", plot.name));
            fs::write(&file, &plot.svg).with_context(|| file.display().to_string())?;
        }
    }
    fs::write(dir.join("figures.html"), report.html(&plots))?;
    println!("written: {}", dir.join("figures.{md,html}").display());
    if args.accept {
        baseline.with(&rows).write(&args.baseline)?;
        println!("kept as the baseline: {}", args.baseline.display());
    }
    if args.strict && !report.missing().is_empty() {
        bail!("not measured: {}", report.missing().join(", "));
    }
    Ok(())
}
