//! Charts as SVG text: lines over time and percentile curves. No script, no font, no outside resource.

use super::html::escape;

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 26.0;
/// Names of the colours in the page's style.
const COLOURS: [&str; 6] = ["c1", "c2", "c3", "c4", "c5", "c6"];

/// One line: a name, and a value per x, where there is one.
pub struct Line<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its values.
    pub values: Vec<Option<f64>>,
}

/// A span of time with a name, drawn behind the lines.
pub struct Band<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it begins.
    pub from: f64,
    /// Where it ends.
    pub to: f64,
    /// Whether it is a warm-up.
    pub muted: bool,
}

/// How values become heights.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From 0.
    Linear,
    /// By powers of ten.
    Log,
}

/// Ticks of an axis from `low` to `high`.
fn ticks(scale: Scale, low: f64, high: f64) -> Vec<f64> {
    match scale {
        Scale::Linear => {
            let rough = (high - low) / 4.0;
            let power = 10_f64.powf(rough.max(1e-9).log10().floor());
            let step = [1.0, 2.0, 2.5, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
            let step = step.unwrap_or(10.0 * power);
            let count = ((high - low) / step + 1e-6).floor().clamp(0.0, 20.0) as u32;
            (0..=count).map(|nth| low + f64::from(nth) * step).collect()
        }
        Scale::Log => {
            let (low, high) = (low.log10().round() as i32, high.log10().round() as i32);
            (low..=high).map(|power| 10_f64.powi(power)).collect()
        }
    }
}

/// A value as it stands at an axis.
fn label(value: f64) -> String {
    let size = value.abs();
    if size >= 1e6 {
        format!("{}M", trim(value / 1e6))
    } else if size >= 1e3 {
        format!("{}k", trim(value / 1e3))
    } else {
        trim(value)
    }
}

fn trim(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

struct Axes {
    scale: Scale,
    x: (f64, f64),
    y: (f64, f64),
}

impl Axes {
    fn of(scale: Scale, x: (f64, f64), lines: &[Line<'_>]) -> Self {
        let values = || lines.iter().flat_map(|line| line.values.iter().copied().flatten());
        let most = values().fold(0.0, f64::max);
        let y = match scale {
            Scale::Linear => {
                let all = ticks(scale, 0.0, if most > 0.0 { most } else { 1.0 });
                let step = all.get(1).copied().unwrap_or(1.0);
                (0.0, (most / step).ceil().max(1.0) * step)
            }
            Scale::Log => {
                let least = values().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min).clamp(0.001, 1e6);
                let low = 10_f64.powf(least.log10().floor());
                (low, 10_f64.powf(most.max(low * 1.001).log10().ceil()).max(low * 10.0))
            }
        };
        Self { scale, x: (x.0, if x.1 > x.0 { x.1 } else { x.0 + 1.0 }), y }
    }

    fn x(&self, value: f64) -> f64 {
        LEFT + (value - self.x.0) / (self.x.1 - self.x.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.y.0) / (self.y.1 - self.y.0),
            Scale::Log => (value.max(self.y.0) / self.y.0).log10() / (self.y.1 / self.y.0).log10(),
        };
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn frame(&self, svg: &mut String, x_ticks: &[(f64, String)]) {
        for tick in ticks(self.scale, self.y.0, self.y.1) {
            let y = self.y(tick);
            put!(svg, r#"<line class="grid" x1="{LEFT}" x2="{:.1}" y1="{y:.1}" y2="{y:.1}"/>"#, WIDTH - RIGHT);
            put!(
                svg,
                r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                LEFT - 8.0,
                y + 4.0,
                label(tick)
            );
        }
        for (value, text) in x_ticks {
            put!(
                svg,
                r#"<text class="tick" x="{:.1}" y="{:.1}" text-anchor="middle">{text}</text>"#,
                self.x(*value),
                HEIGHT - 8.0
            );
        }
    }

    fn lines(&self, svg: &mut String, x: &[f64], lines: &[Line<'_>], unit: &str, x_unit: &str) {
        for (nth, line) in lines.iter().enumerate() {
            let colour = COLOURS[nth % COLOURS.len()];
            let mut path = String::new();
            let mut pen_down = false;
            let mut alone = Vec::new();
            for (at, (x, value)) in x.iter().zip(&line.values).enumerate() {
                let Some(value) = value else {
                    pen_down = false;
                    continue;
                };
                put!(path, "{}{:.1} {:.1}", if pen_down { "L" } else { "M" }, self.x(*x), self.y(*value));
                let next = line.values.get(at + 1).is_some_and(Option::is_some);
                if !pen_down && !next {
                    alone.push((self.x(*x), self.y(*value)));
                }
                pen_down = true;
            }
            put!(svg, r#"<path class="line {colour}" d="{path}"/>"#);
            for (x, y) in alone {
                put!(svg, r#"<circle class="dot {colour}" cx="{x:.1}" cy="{y:.1}" r="2"/>"#);
            }
        }
        // What a pointer finds at each x: all values.
        let width = (WIDTH - LEFT - RIGHT) / x.len().max(1) as f64;
        for (at, x) in x.iter().enumerate() {
            let mut text = format!("{}{x_unit}", trim(*x));
            for line in lines {
                if let Some(Some(value)) = line.values.get(at) {
                    put!(text, "\n{}: {}{unit}", line.name, trim(*value));
                }
            }
            put!(
                svg,
                r#"<rect class="hit" x="{:.1}" y="{TOP}" width="{width:.1}" height="{:.1}"><title>{}</title></rect>"#,
                self.x(*x) - width / 2.0,
                HEIGHT - TOP - BOTTOM,
                escape(&text)
            );
        }
    }
}

fn open(svg: &mut String, title: &str) {
    put!(svg, r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}">"#, escape(title));
}

/// Names of the lines with their colours; nothing for a single one, which the title names.
fn legend(lines: &[Line<'_>]) -> String {
    if lines.len() < 2 {
        return String::new();
    }
    let mut text = String::from(r#"<div class="legend">"#);
    for (nth, line) in lines.iter().enumerate() {
        put!(text, r#"<span><i class="{}"></i>{}</span>"#, COLOURS[nth % COLOURS.len()], escape(line.name));
    }
    text + "</div>"
}

/// Lines over the seconds of a run. `limit` is a line that values are not to cross.
pub fn over_time(
    title: &str,
    unit: &str,
    scale: Scale,
    seconds: &[f64],
    bands: &[Band<'_>],
    lines: &[Line<'_>],
) -> String {
    let last = bands.last().map_or(1.0, |band| band.to).max(seconds.last().copied().unwrap_or(1.0));
    let axes = Axes::of(scale, (0.0, last), lines);
    let mut svg = String::new();
    open(&mut svg, title);
    for (nth, band) in bands.iter().enumerate() {
        let (from, to) = (axes.x(band.from), axes.x(band.to));
        let class = if band.muted {
            "band muted"
        } else if nth % 2 == 0 {
            "band even"
        } else {
            "band"
        };
        put!(
            svg,
            r#"<rect class="{class}" x="{from:.1}" y="{TOP}" width="{:.1}" height="{:.1}"/>"#,
            to - from,
            HEIGHT - TOP - BOTTOM
        );
        if to - from > 7.0 * band.name.len() as f64 {
            put!(
                svg,
                r#"<text class="phase" x="{:.1}" y="{:.1}">{}</text>"#,
                from + 5.0,
                TOP + 12.0,
                escape(band.name)
            );
        }
    }
    let x_ticks: Vec<_> =
        ticks(Scale::Linear, 0.0, last).into_iter().map(|tick| (tick, format!("{} s", trim(tick)))).collect();
    axes.frame(&mut svg, &x_ticks);
    axes.lines(&mut svg, seconds, lines, unit, " s");
    format!("<figure><figcaption>{}</figcaption>{}{svg}</svg></figure>", escape(title), legend(lines))
}

/// A latency by percentile, drawn so that 99.9 is as far from 99 as 99 is from 90.
pub fn by_percentile(title: &str, curves: &[(&str, &[(f64, f64)])]) -> String {
    let place = |percentile: f64| -(1.0 - percentile.min(99.999) / 100.0).log10();
    let x: Vec<f64> =
        curves.first().map(|(_, curve)| curve.iter().map(|(at, _)| place(*at)).collect()).unwrap_or_default();
    let lines: Vec<Line<'_>> = curves
        .iter()
        .map(|(name, curve)| Line { name, values: curve.iter().map(|(_, ms)| Some(*ms)).collect() })
        .collect();
    let axes = Axes::of(Scale::Log, (0.0, 5.0), &lines);
    let mut svg = String::new();
    open(&mut svg, title);
    let x_ticks =
        [("0", 0.0), ("50", 50.0), ("90", 90.0), ("99", 99.0), ("99.9", 99.9), ("99.99", 99.99), ("max", 99.999)];
    axes.frame(&mut svg, &x_ticks.map(|(text, at)| (place(at), text.to_owned())));
    axes.lines(&mut svg, &x, &lines, " ms", "");
    format!("<figure><figcaption>{}</figcaption>{}{svg}</svg></figure>", escape(title), legend(&lines))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(Scale::Linear, 0.0, 100.0), [0.0, 25.0, 50.0, 75.0, 100.0]);
        assert_eq!(ticks(Scale::Linear, 0.0, 15_000.0), [0.0, 5_000.0, 10_000.0, 15_000.0]);
        assert_eq!(ticks(Scale::Log, 0.1, 100.0), [0.1, 1.0, 10.0, 100.0]);
        assert_eq!([label(15_000.0), label(0.1), label(2_500_000.0)], ["15k", "0.1", "2.5M"]);
    }

    #[test]
    fn gaps_break_a_line_and_names_are_escaped() {
        let lines = [Line { name: "a<b", values: vec![Some(1.0), None, Some(3.0), Some(4.0)] }];
        let svg = over_time("t & t", "", Scale::Linear, &[1.0, 2.0, 3.0, 4.0], &[], &lines);
        assert_eq!(svg.matches('M').count(), 2, "{svg}");
        assert!(svg.contains("t &amp; t") && svg.contains("a&lt;b: 1") && !svg.contains("a<b"));
    }

    #[test]
    fn nothing_and_zeros_can_be_drawn() {
        for scale in [Scale::Linear, Scale::Log] {
            for values in [vec![], vec![Some(0.0)], vec![None]] {
                let svg = over_time("t", "", scale, &[1.0], &[], &[Line { name: "a", values }]);
                assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            }
        }
    }
}
